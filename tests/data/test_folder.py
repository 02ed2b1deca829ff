import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tagseg.data.read import read_dataset
from tagseg.data.records import Dataset
from tagseg.data.tag_rows import TagRow, split_rows, split_tags
from tagseg.data.tag_tables import read_table
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

SETTINGS = DataSettings(min_images=1)


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(root / name)
    return root


def read_folder(root: Path, settings: DataSettings = SETTINGS) -> Dataset:
    return read_dataset(root, settings)


def tagged(root: Path) -> dict[str, tuple[str, ...]]:
    dataset = read_folder(root, SETTINGS)
    return {sample.id: tuple(dataset.classes[tag - 1] for tag in sample.tags) for sample in dataset.samples}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,tags\na.png,cat dog\nb.png,dog\n", {"a": ("cat", "dog"), "b": ("dog",)}),
        ("\ufeffFile_Name,Labels\r\na.png,dog;cat\r\n\r\nb.png,dog\r\n", {"a": ("cat", "dog"), "b": ("dog",)}),
        ("tags,filename\ncat|traffic light,a.png\ntraffic light,b.png\n", {"a": ("cat", "traffic light")}),
        ('image,tags\na.png,"cat, dog"\nb.png, dog \n', {"a": ("cat", "dog"), "b": ("dog",)}),
        ("image,tags\na.png,cat,dog\nb.png,dog\n", {"a": ("cat", "dog"), "b": ("dog",)}),
        ("image;tags\na.png;cat dog\nb.png;dog\n", {"a": ("cat", "dog"), "b": ("dog",)}),
        ("image\ttags\na.png\tcat,dog\nb.png\tdog\n", {"a": ("cat", "dog"), "b": ("dog",)}),
        ("image,tags\na.png,cat dog cat\nb.png,dog\n", {"a": ("cat", "dog"), "b": ("dog",)}),
        ("image,tags\na.png,Bär 猫\nb.png,猫\n", {"a": ("Bär", "猫"), "b": ("猫",)}),
    ],
)
def test_tags_csv_is_read(text: str, expected: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
    images(tmp_path, "a.png", "images/b.png")
    (tmp_path / "tags.csv").write_bytes(text.encode())
    result = tagged(tmp_path)
    assert set(result) == {"a", "b"}
    assert {**result, **expected} == result


def test_split_column_and_test_rows(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "c.png", "d.png")
    rows = "a.png,cat,train\nb.png,dog,VAL\nc.png,,validation\nd.png,dog,\ngone.png,,test\n"
    (tmp_path / "tags.csv").write_text("image,tags,split\n" + rows)
    dataset = read_folder(tmp_path, SETTINGS)
    assert [(sample.id, sample.split, sample.tags) for sample in dataset.samples] == [
        ("a", "train", (1,)),
        ("b", "val", (2,)),
        ("c", "val", ()),
        ("d", "train", (2,)),
    ]
    assert [str(one) for one in dataset.ignored] == ["1 images of the test split are left out (gone.png)"]


def test_metadata_files_in_split_folders(tmp_path: Path) -> None:
    images(tmp_path, "train/a.png", "train/sub/b.png", "validation/c.png", "test/d.png")
    lines = [{"file_name": "a.png", "labels": ["traffic light", "cat"]}, {"file_name": "sub/b.png", "labels": "cat"}]
    (tmp_path / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "validation/metadata.csv").write_text("file_name,label\nc.png,cat\n")
    (tmp_path / "test/metadata.csv").write_text("file_name,label\nd.png,cat\n")
    dataset = read_folder(tmp_path, SETTINGS)
    assert dataset.classes == ("cat", "traffic light")
    assert [(sample.id, sample.split, sample.tags) for sample in dataset.samples] == [
        ("train/a", "train", (1, 2)),
        ("train/sub/b", "train", (1,)),
        ("validation/c", "val", (1,)),
    ]


def test_a_separator_anywhere_keeps_spaces_everywhere(tmp_path: Path) -> None:
    images(tmp_path, "train/a.png", "val/b.png")
    (tmp_path / "train/metadata.csv").write_text("file_name,tags\na.png,traffic light;cat\n")
    (tmp_path / "val/metadata.csv").write_text("file_name,tags\nb.png,traffic light\n")
    assert tagged(tmp_path) == {"train/a": ("cat", "traffic light"), "val/b": ("traffic light",)}


def test_class_file_fixes_the_order(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "tags.csv").write_text("image,tags\na.png,cat dog\n")
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfdog\r\n\r\ncat\r\n")
    assert read_folder(tmp_path, SETTINGS).classes == ("dog", "cat")
    (tmp_path / "classes.txt").write_text("dog\ncat\ndog\n")
    with pytest.raises(DataError, match=r"classes\.txt, row 3: class 'dog' is listed twice"):
        read_folder(tmp_path, SETTINGS)


@pytest.mark.parametrize("base", ["", "images/"])
def test_one_folder_per_class(base: str, tmp_path: Path) -> None:
    images(tmp_path, f"{base}cat/1.png", f"{base}cat/deep/2.png", f"{base}train/1.png")
    (tmp_path / base / "empty").mkdir()
    (tmp_path / base / "cat/notes.txt").write_text("no image")
    assert tagged(tmp_path) == {"cat/1": ("cat",), "cat/deep/2": ("cat",), "train/1": ("train",)}
    assert read_folder(tmp_path, SETTINGS).notes == (f"folder {base}empty has no images and is left out",)


def test_class_folders_below_split_folders(tmp_path: Path) -> None:
    images(tmp_path, "train/cat/1.png", "val/cat/1.png", "test/cat/1.png", "masks/train/cat/1.png")
    dataset = read_folder(tmp_path, SETTINGS)
    assert [(sample.id, sample.split) for sample in dataset.samples] == [("train/cat/1", "train"), ("val/cat/1", "val")]
    assert [sample.mask is not None for sample in dataset.samples] == [True, False]


def test_masks_and_saliency_are_found_by_path_or_unique_name(tmp_path: Path) -> None:
    images(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png", "dog/3.png")
    images(tmp_path, "masks/cat/1.png", "masks/1.png", "masks/2.png", "saliency/dog/3.jpg")
    samples = {sample.id: sample for sample in read_folder(tmp_path, SETTINGS).samples}
    assert samples["cat/1"].mask == tmp_path / "masks/cat/1.png"
    assert samples["cat/2"].mask == tmp_path / "masks/2.png"
    # Two images are called 1.png: masks/1.png must not be used for either.
    assert samples["dog/1"].mask is None
    assert samples["dog/3"].saliency == tmp_path / "saliency/dog/3.jpg"


def test_the_mask_folder_comes_from_the_settings(tmp_path: Path) -> None:
    images(tmp_path, "data/cat/1.png", "truth/1.png", "data/inner/1.png", "other/2.png")
    (sample,) = read_folder(tmp_path / "data", DataSettings(masks="inner", min_images=1)).samples
    assert sample.mask == tmp_path / "data/inner/1.png"
    (tmp_path / "data/inner").rename(tmp_path / "data/.inner")
    (sample,) = read_folder(tmp_path / "data", DataSettings(masks=str(tmp_path / "truth"), min_images=1)).samples
    assert sample.mask == tmp_path / "truth/1.png"
    for name in ("masks", "saliency"):
        with pytest.raises(DataError, match=rf"setting data\.{name}: 'nowhere' is not a folder, expected one below"):
            read_folder(tmp_path / "data", DataSettings(**{name: "nowhere"}))
    with pytest.raises(DataError, match=r"other: no mask fits an image: it holds 2\.png, expected .* cat/1\.png"):
        read_folder(tmp_path / "data", DataSettings(masks=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("image,tags\na.png,cat\nb.png,cat\n", r"tags\.csv, row 3: image 'b\.png' is missing"),
        ("image,tags\na.png, \n", r"no training image has a tag in tags\.csv; expected at least one"),
        (
            "image,tags\n\na.png,cat,horse\n",
            r"tags\.csv, row 3: unknown tag 'horse', expected one of classes\.txt: cat",
        ),
        ("image,tags\n../a.png,cat\n", r"tags\.csv, row 2: image '\.\./a\.png' leaves the data folder"),
        ("image,tags\n/etc/passwd,cat\n", r"tags\.csv, row 2: image '/etc/passwd' leaves the data folder"),
        ("image,tags\nlink.png,cat\n", r"tags\.csv, row 2: .*link\.png is a link that leaves the data folder"),
        (
            "image,tags,split\na.png,cat,train\na.png,cat,val\n",
            r"row 3: image 'a\.png' is in val, .*row 2 has",
        ),
        ("picture,tags\na.png,cat\n", r"tags\.csv, row 1: got columns picture, tags, expected one of image, file"),
        ("image,words\na.png,cat\n", r"tags\.csv, row 1: got columns image, words, expected one of tags"),
        ("", r"tags\.csv, row 1: got columns none"),
        ("image,tags,split\na.png,cat,fold\n", r"tags\.csv, row 2: split 'fold', expected train, val"),
        ("image,tags,split\na.png,cat,dog,train\n", r"tags\.csv, row 2: 4 cells, expected 3; put the tags in quotes"),
    ],
)
def test_bad_rows_are_named(rows: str, message: str, tmp_path: Path) -> None:
    root = images(tmp_path / "data", "a.png")
    images(tmp_path, "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "classes.txt").write_text("cat\n")
    (root / "tags.csv").write_text(rows)
    with pytest.raises(DataError, match=message):
        read_folder(root, SETTINGS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"row 2: not valid JSON"),
        ("[" * 100_000, r"row 2: not valid JSON"),
        ("[1]", r"row 2: got '\[1\]', expected a JSON object"),
        ('{"file_name": "a.png"}', r"row 2: got keys file_name, expected one of tags"),
    ],
)
def test_bad_json_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text("\n" + line)
    with pytest.raises(DataError, match=r"metadata\.jsonl, " + message):
        read_folder(tmp_path, SETTINGS)


@pytest.mark.parametrize("name", ["tags.csv", "classes.txt"])
def test_files_that_are_not_utf8_are_named(name: str, tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    (tmp_path / "tags.csv").write_text("image,tags\na.png,cat\n")
    (tmp_path / name).write_bytes(b"image,tags\n\xff\xfe,cat")
    with pytest.raises(DataError, match=rf"{name}: cannot be read .*expected UTF-8"):
        read_folder(tmp_path, SETTINGS)


def test_a_class_folder_that_links_outside_is_refused(tmp_path: Path) -> None:
    images(tmp_path, "data/cat/1.png", "elsewhere/1.png")
    (tmp_path / "data/dog").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"folder .*dog: .* leaves the data folder"):
        read_folder(tmp_path / "data", SETTINGS)


def test_a_list_of_tags_is_not_split(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"File_Name": "a.png", "Tags": [" a, b ", 3, "", "a, b"]}')
    rows = read_table(tmp_path / "metadata.jsonl", "val")
    assert rows[0].tags == ("a, b", "3") and rows[0].split == "val"
    assert split_rows(rows) == [("a, b", "3")]


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


COMPOSED = st.text(st.characters(categories=("L", "N")), min_size=1).map(
    lambda text: unicodedata.normalize("NFC", text)
)
NAMES = st.lists(COMPOSED, min_size=1, unique=True)


@given(NAMES, st.sampled_from([" ", ";", "|", ",", " ; ", ", ", "  "]))
def test_joined_tags_are_split_again(names: list[str], separator: str) -> None:
    cell = separator.join(names)
    assert split_rows([TagRow("row 2", "a.png", cell, "train")]) == [tuple(names)]


@given(NAMES, st.sampled_from(";|,"))
def test_names_with_spaces_survive_other_separators(names: list[str], separator: str) -> None:
    spaced = [f"{name} x" for name in names]
    rows = [
        TagRow("row 2", "a.png", separator.join(["first one", *spaced]), "train"),
        TagRow("row 3", "b.png", "a b", "val"),
    ]
    assert split_rows(rows) == [tuple(dict.fromkeys(["first one", *spaced])), ("a b",)]


@given(st.text(), st.booleans())
def test_split_tags_are_stripped_and_unique(cell: str, spaces: bool) -> None:
    tags = split_tags(cell, spaces)
    assert len(set(tags)) == len(tags)
    assert all(tag and tag == tag.strip() and tag in composed(cell) for tag in tags)


def test_a_long_list_of_classes_is_read_and_shortened_in_errors(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/0.png")
    (tmp_path / "tags.csv").write_text("image,tags\n0.png,cat\n")
    (tmp_path / "classes.txt").write_text("\n".join(f"c{i}" for i in range(100_000)))
    with pytest.raises(DataError, match=r"unknown tag 'cat', expected one of classes.txt: c0, .*c19, \.\.\.; add it"):
        read_dataset(tmp_path, DataSettings(min_images=1))
    (tmp_path / "classes.txt").write_text("x" * 1_000_000)
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path, DataSettings(min_images=1))
    assert len(str(caught.value)) < 1000
