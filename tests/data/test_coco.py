import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.data.coco import instance_files, read_coco
from tagseg.data.read import read_dataset
from tagseg.data.records import CocoMask
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

SETTINGS = DataSettings(min_images=1)
SQUARE = [[0, 0, 2, 0, 2, 2, 0, 2]]


def content() -> dict[str, Any]:
    """Return annotations of three images: 1 has a dog and a crowd of cats, 2 has two cats, 3 nothing; no birds."""
    return {
        "categories": [{"id": 17, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 9, "name": "bird"}],
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in (1, 2, 3)],
        "annotations": [
            {"image_id": 1, "category_id": 5, "segmentation": SQUARE, "iscrowd": 0},
            {"image_id": 1, "category_id": 17, "segmentation": {"size": [4, 6], "counts": [12, 12]}, "iscrowd": 1},
            {"image_id": 2, "category_id": 17, "segmentation": SQUARE, "iscrowd": 0},
            {"image_id": 2, "category_id": 17, "segmentation": SQUARE},
        ],
    }


def write(file: Path, folder: Path, data: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data))
    for number in (1, 2, 3):
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 4)).save(folder / f"{number}.jpg")


def test_tags_classes_masks_and_notes(tmp_path: Path) -> None:
    val = content()
    val["annotations"] = [
        {"image_id": 2, "category_id": 9, "segmentation": SQUARE},
        {"image_id": 2, "category_id": 17, "segmentation": [[2, 2, 4, 2, 4, 4, 2, 4]]},
    ]
    write(tmp_path / "annotations/instances_train2017.json", tmp_path / "train2017", content())
    write(tmp_path / "annotations/instances_val2017.json", tmp_path / "images/val2017", val)
    dataset = read_coco(tmp_path, SETTINGS)
    assert dataset.classes == ("dog", "cat") and dataset.mask_ids is None
    assert [(sample.id, sample.split, sample.tags) for sample in dataset.samples] == [
        ("1", "train", (1,)),
        ("2", "train", (2,)),
        ("3", "train", ()),
        ("1", "val", ()),
        ("2", "val", (2,)),
        ("3", "val", ()),
    ]
    assert dataset.samples[0].image == tmp_path / "train2017/1.jpg"
    assert dataset.samples[3].image == tmp_path / "images/val2017/1.jpg"
    dropped, crowds = dataset.notes
    assert dropped == "1 of 3 categories occur on no training image and are left out"
    assert crowds.startswith("1 annotations of crowds give no tag") and "--data.coco-protocol" in crowds
    assert dataset.ignored == () and not load_mask(dataset.samples[2], dataset, (4, 6)).any()
    first = np.zeros((4, 6), int)
    first[:2, :2], first[:, 3:] = 1, 255
    assert load_mask(dataset.samples[0], dataset, (4, 6)).tolist() == first.tolist()
    # No training image has a bird: it is background.
    second = np.zeros((4, 6), int)
    second[2:, 2:4] = 2
    assert load_mask(dataset.samples[4], dataset, (4, 6)).tolist() == second.tolist()


def test_equal_names_in_two_folders_get_different_ids(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / f"annotations/instances_{split}2014.json", tmp_path / f"{split}2014", content())
    ids = [sample.id for sample in read_dataset(tmp_path, SETTINGS).samples]
    assert ids == [f"{split}2014/{i}.jpg" for split in ("train", "val") for i in (1, 2, 3)]


@pytest.mark.parametrize("file", ["labels.json", "annotations/all.json", "instances_train.json"])
@pytest.mark.parametrize("folder", ["images", ""])
def test_a_single_json_file_may_be_anywhere(file: str, folder: str, tmp_path: Path) -> None:
    write(tmp_path / file, tmp_path / folder, content())
    dataset = read_dataset(tmp_path, SETTINGS)
    assert dataset.layout == "coco" and [sample.id for sample in dataset.samples] == ["1", "2", "3"]


def test_boxes_alone_give_tags_but_no_mask(tmp_path: Path) -> None:
    data = content()
    data["annotations"][0]["segmentation"] = []
    write(tmp_path / "a.json", tmp_path, data)
    dataset = read_coco(tmp_path, SETTINGS)
    samples = dataset.samples
    assert samples[0].tags == (1,) and samples[0].mask is None
    assert isinstance(samples[1].mask, CocoMask)
    assert any(note.startswith("1 images have annotations without an outline (1.jpg)") for note in dataset.notes)


def test_crowds_alone_name_the_protocol(tmp_path: Path) -> None:
    data = content()
    for entry in data["annotations"]:
        entry["iscrowd"] = 1
    write(tmp_path / "a.json", tmp_path, data)
    with pytest.raises(DataError, match=r"no image has an annotation that gives a tag, .* which --data\.coco-protocol"):
        read_coco(tmp_path, SETTINGS)


def changed(**changes: Any) -> str:
    """Return the file with entries replaced: `images__0__file_name` is content["images"][0]["file_name"]."""
    data = content()
    for path, value in changes.items():
        *parents, last = (int(step) if step.isdigit() else step for step in path.split("__"))
        target: Any = data
        for step in parents:
            target = target[step]
        if value is None:
            del target[last]
        else:
            target[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "got a list, expected an object with images"),
        (changed(categories=None), "no list 'categories'"),
        (changed(images={}), "no list 'images'"),
        (changed(annotations__2__category_id=None), r"annotations\[2\]: got none for 'category_id', expected .* int"),
        (changed(images__1__height="4"), r"images\[1\]: got '4' for 'height', expected a value of type int"),
        (changed(images__0=7), r"images\[0\]: got none for 'id'"),
        (changed(images__1__id=1), r"images\[1\]: id 1 is used twice"),
        (changed(annotations__1__image_id=8), r"annotations\[1\]: unknown image_id 8"),
        (changed(annotations__1__category_id=8), r"annotations\[1\]: unknown category_id 8"),
        (changed(categories__0__name="dog"), "categories must have different names"),
        (changed(images__0__file_name="gone.jpg"), r"image 1: image 'gone\.jpg' is missing"),
        (changed(images__0__file_name="../x.jpg"), r"image 1: image '\.\./x\.jpg' leaves the data folder"),
    ],
)
def test_bad_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "annotations/instances_train.json", tmp_path / "train", content())
    (tmp_path / "annotations/instances_train.json").write_text(text)
    with pytest.raises(DataError, match=rf"instances_train\.json.*{message}"):
        read_coco(tmp_path, SETTINGS)


def test_ambiguous_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got none for train, expected one file annotations/instances_train\*\.json"):
        read_coco(tmp_path, SETTINGS)
    for year in ("2014", "2017"):
        write(tmp_path / f"annotations/instances_train{year}.json", tmp_path / f"train{year}", content())
    with pytest.raises(DataError, match=r"got annotations/instances_train2014\.json, .*2017\.json for train"):
        read_coco(tmp_path, SETTINGS)
    assert len(instance_files(tmp_path).train) == 2 and instance_files(tmp_path).val == ()


def test_categories_of_both_splits_must_agree(tmp_path: Path) -> None:
    write(tmp_path / "annotations/instances_train.json", tmp_path / "train", content())
    write(tmp_path / "annotations/instances_val.json", tmp_path / "val", json.loads(changed(categories__0__name="cow")))
    with pytest.raises(
        DataError,
        match=r"instances_val\.json: the categories must have the ids and names of instances_train\.json, but differ",
    ):
        read_coco(tmp_path, SETTINGS)


def test_real_coco(shared_data: Path) -> None:
    dataset = read_dataset(shared_data / "data/coco_mini", SETTINGS)
    train, val = dataset.split("train"), dataset.split("val")
    assert dataset.layout == "coco" and dataset.classes[:2] == ("person", "bicycle") and len(dataset.classes) == 49
    assert (len(train), len(val)) == (50, 50)
    for sample in dataset.samples[::7]:
        with Image.open(sample.image) as image:
            mask = load_mask(sample, dataset, (image.height, image.width))
        assert set(np.unique(mask).tolist()) <= {0, 255, *sample.tags}
    with pytest.raises(DataError, match=r"too few training images: .*expected at least 5"):
        read_dataset(shared_data / "data/coco_mini")


def test_the_coco_protocol_counts_as_the_literature_does(tmp_path: Path) -> None:
    """Crowds are objects below smaller ones; training images with only a crowd stay, empty validation images go."""
    dog, cat = 5, 17
    runs = {"size": [4, 6], "counts": [0, 24]}
    for split in ("train", "val"):
        data = content()
        data["annotations"] = [
            {"id": 1, "image_id": 1, "category_id": dog, "iscrowd": 1, "segmentation": runs},
            {"id": 2, "image_id": 1, "category_id": cat, "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]},
            {"id": 3, "image_id": 2, "category_id": dog, "iscrowd": 1, "segmentation": runs},
        ]
        write(tmp_path / f"annotations/instances_{split}2014.json", tmp_path / f"{split}2014", data)
    own = read_coco(tmp_path, SETTINGS)
    # The second image has only a crowd, so nobody knows its tags; the third has no annotation, so it shows no class.
    assert [(sample.id, sample.tags) for sample in own.split("train")] == [("1", (1,)), ("3", ())]
    assert [sample.id for sample in own.split("val")] == ["1", "2", "3"]
    assert "1 training images have only crowds, which give no tag" in str(own.ignored[0])
    found = read_coco(tmp_path, dataclasses.replace(SETTINGS, coco_protocol=True))
    tags = {(sample.id, sample.split): tuple(found.classes[tag - 1] for tag in sample.tags) for sample in found.samples}
    assert tags == {
        (i, split): both for split in ("train", "val") for i, both in (("1", ("dog", "cat")), ("2", ("dog",)))
    }
    dogs, cats = (found.classes.index(name) + 1 for name in ("dog", "cat"))
    drawn = np.full((4, 6), dogs)
    drawn[:2, :2] = cats
    assert load_mask(found.samples[0], found, (4, 6)).tolist() == drawn.tolist()
