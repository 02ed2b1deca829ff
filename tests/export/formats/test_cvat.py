import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_rle

from tagseg.errors import DataError
from tagseg.export.cvat import number_objects, write_cvat
from tagseg.export.masks import MaskSet
from tagseg.settings.export import ExportSettings
from tagseg.system.progress import silent

Make = Callable[..., MaskSet]
CLASSES = ("cat", "big dog", "Kühe <&>")


def picture(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with Image.open(io.BytesIO(archive.read(name))) as image:
        return np.asarray(image)


@pytest.mark.parametrize("parts", [False, True])
def test_the_archives_hold_the_exported_pixels(
    parts: bool, masks: dict[str, np.ndarray], mask_set: Make, tmp_path: Path
) -> None:
    write_cvat(mask_set(masks, CLASSES), tmp_path / "out", ExportSettings(parts=parts), silent)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "segmentation_mask_1.1.zip", "coco_1.0.zip", "labels.json",
    }  # fmt: skip
    with zipfile.ZipFile(tmp_path / "out" / "segmentation_mask_1.1.zip") as archive:
        names = archive.read("ImageSets/Segmentation/default.txt").decode().splitlines()
        assert names == list(masks)
        assert archive.read("labelmap.txt").decode().splitlines()[2] == "big dog:0,128,0::"
        for name, mask in masks.items():
            assert np.array_equal(picture(archive, f"SegmentationClass/{name}.png"), mask)
            numbered = picture(archive, f"SegmentationObject/{name}.png")
            assert np.array_equal(numbered > 0, mask > 0)
            # Every object has one class; a class is one object, or one per part.
            owners = {(int(i), int(c)) for i, c in zip(numbered.ravel(), mask.ravel(), strict=True) if i}
            assert len({i for i, _ in owners}) == len(owners)
            if not parts:
                assert len({c for _, c in owners}) == len(owners)
        assert len(np.unique(picture(archive, "SegmentationObject/plain.png"))) == (5 if parts else 4)
    with zipfile.ZipFile(tmp_path / "out" / "coco_1.0.zip") as archive:
        assert archive.namelist() == ["annotations/instances_default.json"]
        content = json.loads(archive.read("annotations/instances_default.json"))
    painted = {
        image["id"]: (image["file_name"], np.zeros((image["height"], image["width"]), np.uint8))
        for image in content["images"]
    }
    for entry in content["annotations"]:
        painted[entry["image_id"]][1][coco_rle.decode(entry["segmentation"]) > 0] = entry["category_id"]
    for name, mask in painted.values():
        assert np.array_equal(mask, masks[name.removesuffix(".png")])
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert labels[1] == {"name": "big dog", "color": "#008000", "type": "mask", "attributes": []}


def test_the_same_masks_give_the_same_archive(masks: dict[str, np.ndarray], mask_set: Make, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        write_cvat(mask_set(masks, CLASSES), tmp_path / name, ExportSettings(), silent)
        archives = sorted((tmp_path / name).glob("*.zip"))
        contents.append([archive.read_bytes() for archive in archives])
        # Not those of now, which two archives of one second would share.
        times = {entry.date_time for archive in archives for entry in zipfile.ZipFile(archive).infolist()}
        assert len(archives) == 2 and times == {(1980, 1, 1, 0, 0, 0)}
    assert contents[0] == contents[1]


def test_more_objects_than_a_palette_has_colours() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[::2, ::2] = 1
    numbered = number_objects(mask, parts=True)
    assert np.array_equal(numbered > 0, mask > 0) and numbered.max() == 254
    assert len(np.unique(numbered)) == 255


def test_names_that_cvat_cannot_hold(mask_set: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class 'animal:cat'.*; CVAT can also import --to coco"):
        write_cvat(mask_set({"a": np.ones((2, 2), np.uint8)}, ("animal:cat",)), tmp_path, ExportSettings(), silent)
