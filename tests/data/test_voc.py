from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.data.read import read_dataset
from tagseg.data.true_masks import load_mask
from tagseg.data.voc import VOC_CLASSES, read_voc
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

SETTINGS = DataSettings(min_images=1)


def devkit(root: Path, lists: dict[str, str], masks: dict[str, list[int]] | None = None) -> Path:
    """Write a devkit with images a to e, the given lists and masks of one row."""
    for folder in ("JPEGImages", "ImageSets/Segmentation", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    # A list about one of VOC's classes says that numbers are VOC's.
    (root / "ImageSets/Main/aeroplane_other.txt").touch()
    for name in "abcde":
        Image.new("L", (4, 1)).save(root / f"JPEGImages/{name}.jpg")
    for name, text in lists.items():
        (root / "ImageSets" / f"{name}.txt").write_text(text)
    for name, row in (masks or {}).items():
        (root / "SegmentationClass").mkdir(exist_ok=True)
        Image.fromarray(np.array([row], np.uint8)).save(root / f"SegmentationClass/{name}.png")
    return root


def annotate(root: Path, **objects: str) -> None:
    (root / "Annotations").mkdir(exist_ok=True)
    for name, names in objects.items():
        entries = "".join(f"<object><name>{tag}</name><part><name>head</name></part></object>" for tag in names.split())
        (root / f"Annotations/{name}.xml").write_text(f"<annotation><filename>x</filename>{entries}</annotation>")


def tagged(root: Path, settings: DataSettings = SETTINGS) -> dict[str, tuple[str, ...]]:
    dataset = read_voc(root, settings)
    return {sample.id: tuple(dataset.classes[tag - 1] for tag in sample.tags) for sample in dataset.samples}


def test_class_numbers_in_the_list_come_first(tmp_path: Path) -> None:
    root = devkit(tmp_path, {"Segmentation/train": "a 0 14\nb 14\r\n", "Segmentation/val": "c\nd 0\n"})
    annotate(root, a="cat", b="cat")
    dataset = read_voc(root, SETTINGS)
    assert dataset.classes == ("aeroplane", "person") and dataset.mask_ids == {1: 1, 15: 2}
    assert [(sample.id, sample.tags, sample.split) for sample in dataset.samples] == [
        ("a", (1, 2), "train"),
        ("b", (2,), "train"),
        ("c", (), "val"),
        ("d", (1,), "val"),
    ]


def test_tags_csv_comes_before_annotations(tmp_path: Path) -> None:
    root = devkit(tmp_path, {"Segmentation/train": "a\nb\n", "Segmentation/val": "c\nd\n"})
    annotate(root, a="cat", b="cat")
    (root / "tags.csv").write_text("image,tags\nJPEGImages/a.jpg,dog person\nb,person\nc.jpg,dog\n")
    assert tagged(root) == {"a": ("dog", "person"), "b": ("person",), "c": ("dog",), "d": ()}


def test_annotations_come_before_masks(tmp_path: Path) -> None:
    root = devkit(tmp_path, {"Main/train": "a\nb\n", "Main/val": "c\n"}, {"a": [0, 1, 1, 255]})
    annotate(root, a="dog cat dog", b="cat", c="cat bus")
    assert tagged(root) == {"a": ("cat", "dog"), "b": ("cat",), "c": ("cat",)}
    notes = read_voc(root, SETTINGS).notes
    assert notes == ("tags on validation images that no training image has are left out: bus",)


def test_tags_from_masks_are_reported(tmp_path: Path) -> None:
    masks = {"a": [0, 8, 12, 255], "b": [8, 8, 0, 0], "c": [0, 0, 12, 12]}
    root = devkit(tmp_path, {"Segmentation/train": "a\nb\n", "Segmentation/val": "c\n"}, masks)
    dataset = read_voc(root, SETTINGS)
    assert any("tags are taken from the masks" in note for note in dataset.notes)
    assert [sample.tags for sample in dataset.samples] == [(1, 2), (1,), ()]
    assert load_mask(dataset.samples[0], dataset, (1, 4)).tolist() == [[0, 1, 2, 255]]


def test_custom_class_names_are_sorted_and_masks_hold_class_ids(tmp_path: Path) -> None:
    root = devkit(tmp_path, {"Main/train": "a\nb\n"}, {"a": [0, 1, 3, 255]})
    annotate(root, a="zebra cat", b="apple")
    dataset = read_voc(root, SETTINGS)
    assert dataset.classes == ("apple", "cat", "zebra") and dataset.mask_ids is None
    assert load_mask(dataset.samples[0], dataset).tolist() == [[0, 1, 3, 255]]


def test_mask_ids_of_absent_classes_are_unknown(tmp_path: Path) -> None:
    root = devkit(tmp_path, {"Segmentation/train": "a 7\n"}, {"a": [0, 8, 12, 255]})
    dataset = read_voc(root, SETTINGS)
    with pytest.raises(DataError, match=r"a\.png: unknown ids 12 in the mask, expected 0, 255 or 8 \(cat\)"):
        load_mask(dataset.samples[0], dataset)


def test_official_train_list_decides_what_is_scored(tmp_path: Path) -> None:
    lists = {"Segmentation/train_aug": "a 7\nb 7\n", "Segmentation/train": "a\n", "Segmentation/val": "c\n"}
    root = devkit(tmp_path, lists, {name: [0, 8, 8, 255] for name in "abc"})
    assert [(sample.id, sample.scored) for sample in read_voc(root, SETTINGS).samples] == [
        ("a", True),
        ("b", False),
        ("c", True),
    ]


def test_the_first_list_wins_and_settings_name_another(tmp_path: Path) -> None:
    lists = {"Segmentation/trainaug": "a 0\n", "Segmentation/train": "b 0\n", "Main/mine": "c 0\n", "Main/val": "d\n"}
    root = devkit(tmp_path, lists)
    assert set(tagged(root)) == {"a", "d"}
    assert set(tagged(root, DataSettings(train_list="mine", val_list="train.txt"))) == {"c", "b"}


def test_the_devkit_may_be_below_the_data_folder(tmp_path: Path) -> None:
    devkit(tmp_path / "VOCdevkit/VOC2012", {"Main/train": "a 0\n"})
    for root in (tmp_path, tmp_path / "VOCdevkit"):
        dataset = read_dataset(root, SETTINGS)
        assert dataset.layout == "voc" and dataset.root == tmp_path / "VOCdevkit/VOC2012"


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({}, "no list of training images, expected train_aug or trainaug or train"),
        ({"Main/train": "a 0\nz 0\n"}, r"train\.txt, row 2: image 'z' is missing"),
        ({"Main/train": "../a 0\n"}, r"train\.txt, row 1: image '\.\./a' leaves the data folder"),
        ({"Main/train": "a 0\n\nb 20\n"}, r"train\.txt, row 3: class number '20', expected 0 \(aeroplane\) to 19"),
        ({"Main/train": "a x\n"}, r"train\.txt, row 1: class number 'x'"),
        ({"Main/train": "a -1\n"}, r"train\.txt: no training image has tags in the list"),
        ({"Main/train": "a 0\na 1\n"}, r"train\.txt, row 2: image a is listed twice.*row 1"),
        ({"Main/train": "a 0\n", "Main/val": "b\na\n"}, r"val\.txt, row 2: a is also a training image .*row 1"),
        ({"Main/train": "a\n"}, r"train\.txt, row 1: image a has no tags in the list, tags\.csv, Annotations or masks"),
    ],
)
def test_bad_lists_are_named(lists: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_voc(devkit(tmp_path, lists), SETTINGS)


@pytest.mark.parametrize(("name", "flag"), [("train_list", "train-list"), ("val_list", "val-list")])
def test_a_list_in_the_settings_must_exist(name: str, flag: str, tmp_path: Path) -> None:
    root = devkit(tmp_path, {"Main/train": "a 0\n"})
    with pytest.raises(DataError, match=rf"setting data\.{flag}: no list 'other', expected other\.txt in"):
        read_voc(root, DataSettings(**{name: "other"}))


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "cat">]><annotation><object><name>&b;</name></object></annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB.encode(), r"a\.xml: has a document type or an entity"),
        (BOMB.encode("utf-16"), r"a\.xml: has a document type or an entity"),
        (BOMB.encode("utf-16-le"), r"a\.xml: has a document type or an entity"),
        (b"<annotation><object>", r"a\.xml: not valid XML"),
        (b"<annotation></annotation>", r"train\.txt: no training image has tags in Annotations"),
        (b"<?xml version='1.0' encoding='nonsense'?><annotation/>", r"a\.xml: cannot be read as nonsense"),
        (None, r"train\.txt, row 1: image a has no tags in the list, tags\.csv, Annotations or masks"),
    ],
)
def test_bad_annotations_are_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    root = devkit(tmp_path, {"Main/train": "a\n"})
    annotate(root)
    if content is not None:
        (root / "Annotations/a.xml").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_voc(root, SETTINGS)


def test_bad_tags_csv_and_masks_are_named(tmp_path: Path) -> None:
    root = devkit(tmp_path / "one", {"Main/train": "a\n"})
    (root / "tags.csv").write_text("image,tags\na,cat\nJPEGImages/a.jpg,dog\n")
    assert tagged(root) == {"a": ("cat", "dog")}  # rows of one image are merged
    (root / "tags.csv").write_text("image,tags\nb,cat\n")
    with pytest.raises(DataError, match=r"train\.txt, row 1: image a has no tags in tags\.csv"):
        read_voc(root, SETTINGS)
    root = devkit(tmp_path / "two", {"Main/train": "a\nb\n"}, {"a": [0, 8, 33, 255]})
    with pytest.raises(DataError, match=r"a\.png: unknown ids 33 in the mask, expected 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"):
        read_voc(root, SETTINGS)
    Image.new("L", (4, 1), 8).save(root / "SegmentationClass/a.png")
    with pytest.raises(DataError, match=r"train\.txt, row 2: no tags, expected some in .*b\.png"):
        read_voc(root, SETTINGS)
    with pytest.raises(DataError, match="not a VOC devkit, expected folders JPEGImages and ImageSets"):
        read_voc(tmp_path, SETTINGS)


def test_voc_classes_have_the_official_ids() -> None:
    assert len(VOC_CLASSES) == 20
    assert [VOC_CLASSES.index(name) + 1 for name in ("aeroplane", "cat", "person", "tvmonitor")] == [1, 8, 15, 20]


def test_real_animals(shared_data: Path) -> None:
    dataset = read_dataset(shared_data / "data/voc_animals")
    train, val = dataset.split("train"), dataset.split("val")
    assert dataset.layout == "voc" and dataset.classes == ("cat", "cow", "dog", "horse", "person", "sheep")
    assert dataset.mask_ids == {8: 1, 10: 2, 12: 3, 13: 4, 15: 5, 17: 6}
    assert (len(train), sum(sample.scored for sample in train), len(val)) == (2651, 370, 199)
    assert [sum(tag in sample.tags for sample in train) for tag in range(1, 7)] == [826, 250, 931, 405, 521, 284]
    # A mask has no class without a tag: tags and mask ids agree.
    for sample in val[:20]:
        assert set(np.unique(load_mask(sample, dataset)).tolist()) <= {0, 255, *sample.tags}


def test_lists_about_one_class_may_be_all_positive(tmp_path: Path) -> None:
    """As Datumaro writes them."""
    lists = {"Main/train": "a\nb\n", "Main/cat_train": "a  1\nb  1\n", "Main/dog_train": "a -1\nb  1\n"}
    lists |= {"Main/val": "c\n", "Main/cat_val": "c  1\n", "Main/dog_val": "c -1\n"}
    dataset = read_voc(devkit(tmp_path, lists), SETTINGS)
    assert dataset.classes == ("cat", "dog") and [sample.tags for sample in dataset.samples] == [(1,), (1, 2), (1,)]
