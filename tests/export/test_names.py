"""Every format keeps the names of images and classes, or the export fails with an error that quotes the name."""

import contextlib
import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagseg.errors import DataError
from tagseg.export.coco import write_coco
from tagseg.export.cvat import write_cvat
from tagseg.export.huggingface import write_huggingface
from tagseg.export.labelstudio import write_labelstudio
from tagseg.export.masks import MaskedImage, MaskSet
from tagseg.export.voc import write_voc
from tagseg.export.yolo import write_yolo, yolo_image
from tagseg.masks.mask_files import write_mask
from tagseg.settings.export import LOCAL_FILES, ExportSettings
from tagseg.system.progress import silent

MASK = np.array([[1, 0, 2]], np.uint8)

# File names may hold control characters, spaces, quotes, other scripts and line ends.
SIGNS = st.characters(exclude_categories=["Cs"], exclude_characters="/\0")
FOLDER = st.text(SIGNS, min_size=1, max_size=12).filter(lambda name: name not in (".", ".."))
PATH = st.lists(FOLDER, min_size=1, max_size=2).map("/".join)
# A file and a folder cannot share one name.
IDS = st.lists(PATH, min_size=1, max_size=3, unique_by=lambda path: path.split("/")[0])
CLASSES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=3, unique=True)


@contextlib.contextmanager
def exported(ids: Sequence[str], classes: Sequence[str]) -> Iterator[tuple[MaskSet, Path]]:
    """Yield a set of masks with these names, and a folder to export to."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_mask(root / "mask.png", MASK)
        Image.new("RGB", (3, 1)).save(root / "image.png")
        images = tuple(
            MaskedImage(name, f"{name}.JPG", root / "image.png", (1, 3), root / "mask.png", (1, 2)) for name in ids
        )
        yield MaskSet(tuple(classes), "train", images, "decided"), root / "out"


@settings(max_examples=25)
@given(IDS, CLASSES)
def test_names_in_coco(ids: list[str], classes: list[str]) -> None:
    with exported(ids, classes) as (masks, out):
        write_coco(masks, out, ExportSettings(), silent)
        content = json.loads((out / "annotations" / "instances_train.json").read_text(encoding="utf-8"))
    assert [image["file_name"] for image in content["images"]] == [f"{name}.JPG" for name in ids]
    assert [category["name"] for category in content["categories"]] == classes


@settings(max_examples=25)
@given(IDS, CLASSES)
def test_names_in_yolo(ids: list[str], classes: list[str]) -> None:
    with exported(ids, classes) as (masks, out):
        write_yolo(masks, out, ExportSettings(), silent)
        content = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
        labels = [path for path in (out / "labels").rglob("*") if path.is_file()]
        assert {path.relative_to(out / "labels") for path in labels} == {Path("train", f"{name}.txt") for name in ids}
        assert all(len(path.read_text().splitlines()) == 2 for path in labels)
    assert list(content["names"].values()) == classes
    assert [yolo_image(masks, image) for image in masks.images] == [Path("images/train", f"{name}.JPG") for name in ids]


@settings(max_examples=25)
@given(IDS, CLASSES)
def test_names_in_an_image_folder(ids: list[str], classes: list[str]) -> None:
    with exported(ids, classes) as (masks, out):
        write_huggingface(masks, out, ExportSettings(), silent)
        lines = (out / "train" / "metadata.jsonl").read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        assert all((out / "train" / row["mask_file_name"]).is_file() for row in rows)
    assert [row["file_name"] for row in rows] == [f"images/{name}.JPG" for name in ids]
    assert all(row["tags"] == classes[:2] for row in rows)


@settings(max_examples=25)
@given(IDS)
def test_names_in_label_studio(ids: list[str]) -> None:
    with exported(ids, ("a", "b")) as (masks, out):
        write_labelstudio(masks, out, ExportSettings(), silent)
        tasks = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["name"] for task in tasks] == [f"{name}.JPG" for name in ids]
    addresses = [task["data"]["image"].removeprefix(LOCAL_FILES) for task in tasks]
    assert [unquote(address) for address in addresses] == [f"{name}.JPG" for name in ids]
    assert all(address.isascii() and not set(address) & set(" ?#&+\n") for address in addresses)


def listable(name: str) -> bool:
    """Tell whether a reader that strips every line of a list gets the name back."""
    return [line.strip() for line in f"{name}\n".splitlines()] == [name] and name[0] != "#"


@settings(max_examples=40)
@given(IDS)
def test_names_in_lists(ids: list[str]) -> None:
    with exported(ids, ("a", "b")) as (masks, out):
        if not all(map(listable, ids)):
            for write in (write_voc, write_cvat):
                with pytest.raises(DataError, match="an image list cannot hold the name"):
                    write(masks, out, ExportSettings(), silent)
            return
        write_voc(masks, out, ExportSettings(), silent)
        text = (out / "ImageSets" / "Segmentation" / "train.txt").read_text(encoding="utf-8")
        assert [line.strip() for line in text.splitlines()] == ids
        assert all((out / "SegmentationClass" / f"{name}.png").is_file() for name in ids)
        write_cvat(masks, out, ExportSettings(), silent)
        with zipfile.ZipFile(out / "segmentation_mask_1.1.zip") as archive:
            assert archive.read("ImageSets/Segmentation/default.txt").decode() == text
            assert {f"SegmentationObject/{name}.png" for name in ids} <= set(archive.namelist())


@settings(max_examples=40)
@given(CLASSES)
def test_class_names_in_label_maps(classes: list[str]) -> None:
    with exported(["a"], classes) as (masks, out):
        write_voc(masks, out, ExportSettings(), silent)
        names = json.loads((out / "SegmentationClass" / "classes.json").read_text(encoding="utf-8"))
        assert [names[str(i)] for i in range(1, len(classes) + 1)] == classes
        if (out / "labelmap.txt").exists():
            lines = (out / "labelmap.txt").read_text(encoding="utf-8").splitlines()
            assert [line.strip().split(":")[0] for line in lines] == ["background", *classes]
        else:
            assert not all(map(listable, classes)) or any(":" in name for name in classes) or "background" in classes
