import json
from pathlib import Path

import pytest
from PIL import Image

from tagseg.data.read import read_dataset
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

SETTINGS = DataSettings(min_images=1)


def images(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(root / name)
    return root


def test_root_may_be_text_or_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path, "data/cat/1.png")
    monkeypatch.chdir(tmp_path)
    dataset = read_dataset("data", SETTINGS)
    assert dataset.root == tmp_path / "data" and dataset.samples[0].image == tmp_path / "data/cat/1.png"


def test_a_folder_without_a_known_layout_is_refused(tmp_path: Path) -> None:
    images(tmp_path, "1.png")
    with pytest.raises(DataError, match=r"found no images in a known layout; looked for .*VOC.*COCO.*tags\.csv"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_root_must_be_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"{name}: no such folder"):
        read_dataset(tmp_path / name)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"there must be training images, found none \(read as layout folder\)"):
        read_dataset(tmp_path)
    (tmp_path / "tags.csv").write_text("image,tags\n")
    with pytest.raises(DataError, match="there must be training images, found none"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("layout", "message"), [("voc", "not a VOC devkit"), ("coco", "got none for train"), ("folder", None)]
)
def test_the_layout_can_be_forced(layout: str, message: str | None, tmp_path: Path) -> None:
    images(tmp_path, "cat/1.png")
    settings = DataSettings(layout=layout, min_images=1)
    if message is None:
        assert read_dataset(tmp_path, settings).layout == layout
        return
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path, settings)


def test_classes_with_too_few_images_are_counted(tmp_path: Path) -> None:
    images(tmp_path, *(f"cat/{i}.png" for i in range(5)), "dog/1.png", "dog/2.png")
    with pytest.raises(DataError, match=r"too few training images: dog has 2, expected at least 5 of each class"):
        read_dataset(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\nhorse\n")
    with pytest.raises(DataError, match=r"too few training images: horse has 0, expected at least 1"):
        read_dataset(tmp_path, SETTINGS)


def test_more_than_254_classes_are_refused(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    tags = [f"class{i}" for i in range(255)]
    (tmp_path / "tags.csv").write_text("image,tags\na.png," + " ".join(tags))
    with pytest.raises(DataError, match="255 classes, expected at most 254"):
        read_dataset(tmp_path, SETTINGS)
    (tmp_path / "tags.csv").write_text("image,tags\na.png," + " ".join(tags[:254]))
    assert len(read_dataset(tmp_path, SETTINGS).classes) == 254


def test_ids_are_unique(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "a.jpg", "b.png", "c.png", "images/c.png")
    (tmp_path / "tags.csv").write_text("image,tags\na.png,x\na.jpg,x\nb.png,x\nc.png,x\nimages/c.png,x\n")
    ids = [sample.id for sample in read_dataset(tmp_path, SETTINGS).samples]
    assert ids == ["a.png", "a.jpg", "b", "c.png", "images/c.png"]


def test_an_image_in_both_splits_is_refused(tmp_path: Path) -> None:
    images(tmp_path, "images/a.png")
    (tmp_path / "annotations").mkdir()
    content = {
        "categories": [{"id": 1, "name": "cat"}],
        "images": [{"id": 1, "file_name": "a.png", "height": 3, "width": 4}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": []}],
    }
    for split in ("train", "val"):
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"image .*images/a\.png is listed more than once; list it once, in train or"):
        read_dataset(tmp_path, SETTINGS)
