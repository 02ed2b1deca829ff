"""Tags where they already are: tables as people write them, and the exports of annotation tools."""

import io
import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from tagseg.data.images import read_image
from tagseg.data.read import read_dataset
from tagseg.data.records import Dataset
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

Files = dict[str, object]


def folder(root: Path, files: Files) -> Path:
    """Write images (None), text and JSON below a folder."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("L", (4, 3)).save(file)
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def read(root: Path, files: Files, **settings: object) -> Dataset:
    return read_dataset(folder(root, files), DataSettings(min_images=1, **settings))  # type: ignore[arg-type]


def tags(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    return {sample.id: tuple(dataset.classes[tag - 1] for tag in sample.tags) for sample in dataset.samples}


def split(dataset: Dataset) -> list[str]:
    return [sample.id for sample in dataset.split("val")]


EXPECTED = {"0": ("cat", "dog"), "1": ("dog",), "2": ()}
IMAGES: Files = {"0.jpg": None, "1.jpg": None, "2.jpg": None}


@pytest.mark.parametrize(
    "text",
    [
        "image,tags\n0.jpg,\"['cat', 'dog']\"\n1.jpg,\"['dog']\"\n2.jpg,[]\n",
        'image,tags\n0.jpg,"[""cat"", ""dog""]"\n1.jpg,"(\'dog\',)"\n2.jpg,\n',
        "image,tags\n0.jpg,['cat' 'dog']\n1.jpg,\"array(['dog'], dtype=object)\"\n2.jpg,set()\n",
        'image,tags\n0.jpg,"[cat, dog]"\n1.jpg,{dog}\n2.jpg,()\n',
        "filename, cat, dog\n0.jpg, 1, 1\n1.jpg, 0, 1\n2.jpg, 0, 0\n",
        "\ufeffFilename;cat;dog\r\n0.jpg;True;True\r\n1.jpg;False;True\r\n2.jpg;;\r\n",
        "id,width,cat,dog\n0,4,0.9,0.51\n1,4,0.1,0.8\n2,4,1e-3,0\n",
        "image,label\n0.jpg,cat\n0.jpg,dog\n0.jpg,cat\n1.jpg,dog\n2.jpg,\n",
        "image,label,confidence\n0.jpg,cat,0.9\n0.jpg,dog,0.7\n1.jpg,dog,1\n1.jpg,cat,0.2\n2.jpg,cat,0\n",
        "image,tags\n0.jpg,cat:0.9 dog:0.6\n1.jpg,cat:0.1 dog:1\n2.jpg,\n",
        "image,tags\n0.jpg,\"{'cat': 0.9, 'dog': 0.6}\"\n1.jpg,{'dog': 1.0}\n2.jpg,{}\n",
        "sep=;\nimage;tags\n0.jpg;cat,dog\n1.jpg;dog\n2.jpg;\n",
        "0.jpg,cat|dog\n1.jpg,dog\n2.jpg,\n",
        "image,tags\nC:\\photos\\0.jpg,cat dog\n./1.JPG,dog\nhttps://host/2.jpg?x=1,\n",
    ],
)
def test_tables_as_people_write_them(text: str, tmp_path: Path) -> None:
    dataset = read(tmp_path, {**IMAGES, "tags.csv": text})
    assert tags(dataset) == EXPECTED


def test_tables_in_utf_16_have_tabs(tmp_path: Path) -> None:
    dataset = read(tmp_path, {"0.jpg": None, "tags.csv": "image\ttags\n0.jpg\tKäfer\n".encode("utf-16")})
    assert tags(dataset) == {"0": ("Käfer",)}


def test_the_threshold_of_scores_is_a_setting_and_is_said(tmp_path: Path) -> None:
    text = "image,cat,dog\n0.jpg,0.9,0.51\n1.jpg,0.6,0.8\n"
    dataset = read(tmp_path, {"0.jpg": None, "1.jpg": None, "tags.csv": text}, min_score=0.7)
    assert tags(dataset) == {"0": ("cat",), "1": ("dog",)}
    assert dataset.notes == ("scores of at least 0.7 are tags (setting data.min-score)",)
    with pytest.raises(DataError, match=r"tags\.csv, row 1: got columns image, a, .*row 2 has '7' in column 'a'"):
        read(tmp_path, {"tags.csv": "image,a\n0.jpg,7\n"})


def test_unicode_from_a_mac_is_composed(tmp_path: Path) -> None:
    apart, whole = (unicodedata.normalize(form, "Käfer") for form in ("NFD", "NFC"))
    files: Files = {
        f"{apart}.jpg": None,
        "b.jpg": None,
        "tags.csv": f"image,tags\n{whole}.jpg,{apart}\nb.jpg,{whole}\n",
    }
    dataset = read(tmp_path, files)
    assert dataset.classes == (whole,) and len(dataset.samples) == 2


def test_a_name_with_two_meanings_is_refused(tmp_path: Path) -> None:
    files: Files = {"a/0.jpg": None, "b/0.jpg": None, "tags.csv": "image,tags\n0.jpg,cat\n"}
    with pytest.raises(DataError, match=r"row 2: image '0\.jpg' may be a/0\.jpg or b/0\.jpg; name its folder"):
        read(tmp_path, files)
    # A name with a folder never means an image in another one.
    with pytest.raises(DataError, match=r"row 2: image 'c/0\.jpg' is missing; .*2 images are missing, also c/1\.jpg"):
        read(tmp_path, {"tags.csv": "image,tags\nc/0.jpg,cat\nc/1.jpg,cat\n"})


def test_images_without_a_row_and_repeated_rows_are_counted(tmp_path: Path) -> None:
    text = "image,tags\n0.jpg,cat\n0.jpg,cat\n._0.jpg,cat\n"
    dataset = read(tmp_path, {**IMAGES, "._0.jpg": b"x", "@eaDir/0.jpg": b"x", "tags.csv": text})
    found = {one.reason.split(" (")[0]: (one.count, one.expected) for one in dataset.ignored}
    assert found == {
        "rows that repeat the tags of an image are merged": (1, False),
        "rows of files that macOS leaves behind": (1, True),
        "images without a row in tags.csv": (2, False),
        "files of an operating system or tool are skipped": (2, True),
    }


STUDIO = [
    {
        "data": {"image": "/data/upload/1/8af3d2c1-0.jpg"},
        "annotations": [{"result": [{"value": {"choices": ["cat", "dog"]}}]}],
    },
    {"data": {"image": "/data/local-files/?d=1.jpg"}, "annotations": [{"result": [{"value": {"choices": ["dog"]}}]}]},
    {"data": {"image": "s3://bucket/x/2.jpg"}, "annotations": [{"result": []}]},
]
SHORT = [
    {"id": 1, "image": "/data/upload/1/8af3d2c1-0.jpg", "choice": {"choices": ["cat", "dog"]}, "annotator": 1},
    {"id": 2, "image": "/data/upload/1/8af3d2c1-1.jpg", "choice": "dog", "annotator": 1, "lead_time": 1.5},
    {"id": 3, "image": "/data/upload/1/8af3d2c1-2.jpg", "annotator": 1},
]
CVAT = (
    '<annotations><image name="0.jpg"><tag label="cat"/><box label="dog"/></image><image name="1.jpg">'
    '<tag label="dog"/></image><image name="2.jpg"/></annotations>'
)
FIFTYONE = {
    "samples": [
        {
            "filepath": "/elsewhere/0.jpg",
            "truth": {"_cls": "Classifications", "classifications": [{"label": "cat"}, {"label": "dog"}]},
        },
        {"filepath": "1.jpg", "truth": {"_cls": "Classification", "label": "dog", "confidence": 0.9}},
        {"filepath": "2.jpg", "truth": {"_cls": "Classification", "label": "dog", "confidence": 0.1}},
    ]
}
COCO = {
    "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
    "categories": [{"id": 0, "name": "cat"}, {"id": 3, "name": "dog"}],
    "annotations": [
        {"image_id": 0, "category_id": 0},
        {"image_id": 0, "category_id": 3},
        {"image_id": 1, "category_id": 3},
    ],
}


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"export.json": STUDIO}, "Label Studio's export"),
        ({"export.json": SHORT}, "Label Studio's export"),
        ({"annotations.xml": CVAT}, "CVAT's XML for images"),
        ({"samples.json": FIFTYONE}, "FiftyOne's export"),
        ({"labels.json": {"classes": ["cat", "dog"], "labels": {"0": [0, 1], "1": 1, "2": None}}}, "FiftyOne's export"),
        ({"any.json": {"0.jpg": ["cat", "dog"], "1.jpg": "dog", "2.jpg": []}}, "JSON file of tags"),
        ({"any.json": [{"image": f"{i}.jpg", "tags": list(EXPECTED[str(i)])} for i in range(3)]}, "JSON file of tags"),
        ({"labels.json": COCO}, None),
        (
            {
                "0.json": {"flags": {"cat": True, "fox": False}, "shapes": [{"label": "dog"}], "imagePath": "0.jpg"},
                "1.json": {"shapes": [], "flags": {}, "tags": ["dog"], "imagePath": "..\\x\\1.jpg"},
                "2.json": {"shapes": [], "imagePath": "2.jpg"},
            },
            "LabelMe's or X-AnyLabeling's JSON",
        ),
        (
            {
                "0.xml": "<annotation><object><name>cat</name></object><object><name>dog</name></object></annotation>",
                "1.xml": "<annotation><object><name>dog</name></object></annotation>",
                "2.xml": "<annotation></annotation>",
            },
            "VOC's XML",
        ),
        ({"train.csv": "image_id,cat,dog\n0,1,1\n1,0,1\n2,0,0\n", "submission.csv": "id,cat\n"}, "table of tags"),
    ],
)  # fmt: skip
def test_exports_of_tools(files: Files, source: str | None, tmp_path: Path) -> None:
    dataset = read(tmp_path, {**IMAGES, **files})
    assert tags(dataset) == EXPECTED and all(one.expected for one in dataset.ignored)
    assert source is None or dataset.notes[0].startswith(f"tags are read from {source} (")


def test_a_supervisely_project_has_splits_as_tags(tmp_path: Path) -> None:
    def about(*names: str) -> Files:
        return {"size": {}, "objects": [], "tags": [{"name": name} for name in names]}

    files = {f"ds/img/{i}.jpg": None for i in range(3)}
    marks = {"0": ("cat", "dog"), "1": ("dog", "val"), "2": ()}
    files |= {f"ds/ann/{i}.jpg.json": about(*names) for i, names in marks.items()}  # type: ignore[misc]
    dataset = read(tmp_path, {"meta.json": {}, **files})
    assert tags(dataset) == {f"ds/img/{i}": names for i, names in EXPECTED.items()} and split(dataset) == ["ds/img/1"]


@pytest.mark.parametrize(
    ("place", "about"),
    [
        ("{}/images", "train: ../train/images\nval: ../valid/images\nnames: [cat, dog]\n"),
        ("images/{}", "path: /datasets/mine\ntrain: images/train\nval: images/valid\nnames:\n  0: cat\n  1: dog\n"),
    ],
)
def test_yolo_boxes_give_tags(place: str, about: str, tmp_path: Path) -> None:
    at = {"0": "train", "1": "valid", "2": "train"}
    images = {f"{place.format(at[i])}/{i}.jpg": None for i in at}
    boxes = {"0": "0 .5 .5 .1 .1\n1 .5 .5 .1 .1\n", "1": "1 .1 .1 .2 .2 .3 .1\n"}
    labels = {f"{place.format(at[i])}/{i}.txt".replace("images", "labels"): text for i, text in boxes.items()}
    dataset = read(tmp_path, {**images, **labels, "data.yaml": about})
    assert {Path(name).name: found for name, found in tags(dataset).items()} == EXPECTED
    assert [Path(name).name for name in split(dataset)] == ["1"]


def test_a_hugging_face_data_set_is_read_in_place(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    shades, rows = (10, 20, 30), []
    for shade in shades:
        file = io.BytesIO()
        Image.new("L", (4, 3), shade).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": f"{shade}.png"})
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    table = arrow.table({"image": arrow.array(rows, kind), "labels": arrow.array([[0, 1], [1], []])})
    (tmp_path / "train").mkdir()
    with (
        arrow.OSFile(str(tmp_path / "train/data.arrow"), "wb") as out,
        arrow.ipc.new_stream(out, table.schema) as stream,
    ):
        for batch in table.to_batches(2):
            stream.write_batch(batch)
    names = {"feature": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "_type": "Sequence"}
    features = {"features": {"image": {"_type": "Image"}, "labels": names}}
    dataset = read(tmp_path, {"dataset_dict.json": {}, "train/dataset_info.json": features})
    assert list(tags(dataset).values()) == list(EXPECTED.values())
    assert [read_image(sample.image).getpixel((0, 0))[0] for sample in dataset.samples] == list(shades)


def test_open_images_names_its_codes_and_leaves_out_absent_images(tmp_path: Path) -> None:
    labels = "ImageID,LabelName,Confidence\n0,/m/1,1\n0,/m/2,1\n1,/m/2,1\n1,/m/1,0\n2,/m/1,0\nfar,/m/1,1\n"
    names = 'LabelName,DisplayName\n/m/1,cat\n/m/2,"dog, big"\n'
    files: Files = {"annotations/train-human-imagelabels.csv": labels, "annotations/class-descriptions.csv": names}
    dataset = read(tmp_path, {**IMAGES, **files})
    assert tags(dataset) == {"0": ("cat", "dog, big"), "1": ("dog, big",), "2": ()}
    assert [(one.count, one.first) for one in dataset.ignored] == [(1, ("far",))]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.csv": "image,x\n", "b.csv": "image,x\n"}, r"several files may hold the tags: a\.csv, b\.csv; rename"),
        ({"data.yaml": "names: 3\n"}, r"data\.yaml: names must be a list of classes"),
        ({"export.json": [{"data": {"text": "a"}, "annotations": []}]}, r"export\.json, \[0\]: no image in its data"),
        ({"0.json": {"shapes": [1]}}, r"0\.json: not LabelMe's JSON"),
        ({"data/train.parquet": b"PAR1"}, "holds Parquet files, .*save_to_disk"),
        ({"tags.csv": "image,tags\n0.jpg,\n"}, r"no training image has a tag in tags\.csv"),
    ],
)
def test_sources_that_cannot_be_read_are_named(files: Files, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, {**IMAGES, **files})


BOX = "0 .5 .5 .1 .1\n"
CREATE_ML = [{"image": "0.jpg", "annotations": [{"label": "cat"}, {"label": "dog"}]},
             {"image": "1.jpg", "annotations": [{"label": "dog"}]}, {"image": "2.jpg", "annotations": []}]  # fmt: skip
SCORED = [{"image": "0.jpg", "predictions": [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.6}]},
          {"image": "1.jpg", "predictions": [{"label": "dog", "score": 1}, {"label": "cat", "score": 0.1}]},
          {"image": "2.jpg", "predictions": []}]  # fmt: skip
BOXES = "filename,width,class,xmin\n0.jpg,4,cat,1\n0.jpg,4,dog,1\n1.jpg,4,dog,1\n"


@pytest.mark.parametrize(
    "files",
    [
        {"train/_annotations.createml.json": CREATE_ML},
        {"scores.json": SCORED},
        {"scores.json": {"0.jpg": {"cat": 0.9, "dog": 0.6}, "1.jpg": {"dog": 1, "cat": 0.1}, "2.jpg": {}}},
        {"project.csv": 'image,id,choice\n0.jpg,1,"{""choices"":[""cat"",""dog""]}"\n1.jpg,2,dog\n2.jpg,3,\n'},
        {"tags.csv": 'image,scores\n0.jpg,"{""cat"": 0.9, ""dog"": 0.6}"\n1.jpg,"{""dog"": 1.0}"\n2.jpg,{}\n'},
        {"train/labels.csv": "file,label\n0.jpg,cat\n0.jpg,dog\n1.jpg,dog\n2.jpg,\n"},
        {"train/_annotations.csv": BOXES + "2.jpg,4,,\n"},
        {"classes.txt": "cat\ndog\n", "labels/0.txt": BOX + "1" + BOX[1:], "labels/1.txt": "1" + BOX[1:]},
        {"data.yaml": "nc: 2\nnames: [cat, dog]\n", "train/0.txt": BOX + "1" + BOX[1:], "train/1.txt": "1" + BOX[1:]},
        {"train/_darknet.labels": "cat\ndog\n", "train/0.txt": BOX + "1" + BOX[1:], "train/1.txt": "1" + BOX[1:]},
    ],
)
def test_tags_of_other_tools_and_of_classifiers(files: Files, tmp_path: Path) -> None:
    folder = "images" if "classes.txt" in files else "train"
    dataset = read(tmp_path, {f"{folder}/{i}.jpg": None for i in range(3)} | files)
    assert {name.removeprefix("train/"): found for name, found in tags(dataset).items()} == EXPECTED


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tags.csv": "image,tags\n0.jpg,\"{'cat': ['dog']}\"\n"},
            r"tags\.csv, row 2: got .*, expected names of tags, or",
        ),
        ({"tags.json": [{"image": "0.jpg", "tags": [{"id": 3}]}]}, r"\[0\]: got .*, expected the name of a tag, or an"),
        ({"tags.json": {"0.jpg": {"cat": "much"}}}, r"0\.jpg: score 'much', expected a number"),
        ({"_classes.csv": "Pixel Value, Class\n0, background\n"}, "says what the values of masks mean .*expected tags"),
        ({"x.json": [{"data": {"image": "0.jpg"}, "predictions": []}]}, "none of its 1 tasks is annotated; annotate"),
        ({"tags.xlsx": b"x"}, r"found no images in a known layout.*; it holds 1 images, tags\.xlsx"),
    ],
)
def test_what_is_not_understood_is_never_a_tag(files: Files, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, {"0.jpg": None, **files})


def test_names_with_spaces(tmp_path: Path) -> None:
    rows = "0.jpg,polar bear\n1.jpg,black cat\n2.jpg,black cat\n"
    dataset = read(tmp_path / "one", {**IMAGES, "tags.csv": f"image,label,class\n{rows}"})
    assert dataset.classes == ("black cat", "polar bear")
    assert dataset.notes == (
        "tags.csv: tags are read from column label, not from class",
        "column label holds one name per row, which may have spaces: 'polar bear'",
    )
    (note,) = read(tmp_path / "many", {**IMAGES, "tags.csv": f"image,tags\n{rows}"}).notes
    assert note.startswith("tags are separated by spaces: 'black cat' is 2 tags (names with spaces need commas")
    rows = "0.jpg,hot dog\n1.jpg,cat hot dog\n2.jpg,dog cat\n"
    (note,) = read(tmp_path / "cut", {**IMAGES, "tags.csv": f"image,tags\n{rows}"}).notes
    assert note.startswith("tags are separated by spaces: 'hot dog' is 2 tags")


def test_uploads_to_label_studio_lose_characters_and_missing_ones_are_named(tmp_path: Path) -> None:
    task = {"id": 1, "data": {"image": "/data/upload/1/8af3c0de-my_photo1.jpg"},
            "annotations": [{"result": [{"value": {"choices": ["cat"]}}]}]}  # fmt: skip
    assert tags(read(tmp_path / "a", {"my photo(1).jpg": None, "p.json": [task]})) == {"my photo(1)": ("cat",)}
    with pytest.raises(DataError, match=r"\[0\]: image '/data/upload/1/8af3c0de-my_photo1\.jpg' is missing"):
        read(tmp_path / "b", {"other.jpg": None, "p.json": [task]})


def test_cvats_file_names_the_split_of_images_without_a_subset(tmp_path: Path) -> None:
    xml = '<annotations><image name="{}.jpg"><tag label="cat"/></image></annotations>'
    dataset = read(tmp_path, {**IMAGES, "train.xml": xml.format(0), "val.xml": xml.format(1)})
    assert tags(dataset) == {"0": ("cat",), "1": ("cat",)} and split(dataset) == ["1"]
