import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.errors import DataError
from tagseg.export.masks import MaskSet
from tagseg.export.voc import image_list, label_map, write_voc
from tagseg.settings.export import ExportSettings
from tagseg.system.progress import silent

Make = Callable[..., MaskSet]


def test_palette_pngs_hold_the_exported_pixels(masks: dict[str, np.ndarray], mask_set: Make, tmp_path: Path) -> None:
    masks["void"] = np.array([[0, 3, 255]], np.uint8)
    write_voc(mask_set(masks, ("cat", "dog", "cow")), tmp_path / "out", ExportSettings(), silent)
    lines = (tmp_path / "out" / "labelmap.txt").read_text().splitlines()
    assert lines == ["background:0,0,0::", "cat:128,0,0::", "dog:0,128,0::", "cow:128,128,0::", "void:224,224,192::"]
    listed = (tmp_path / "out" / "ImageSets" / "Segmentation" / "train.txt").read_text(encoding="utf-8").splitlines()
    assert listed == list(masks)
    for name, mask in masks.items():
        with Image.open(tmp_path / "out" / "SegmentationClass" / f"{name}.png") as picture:
            assert picture.mode == "P" and np.array_equal(np.asarray(picture), mask)
            colours = np.asarray(picture.convert("RGB"))
        for i, line in enumerate(lines):
            wanted = [int(number) for number in line.split(":")[1].split(",")]
            assert (colours[mask == (255 if line.startswith("void:") else i)] == wanted).all()
    names = json.loads((tmp_path / "out" / "SegmentationClass" / "classes.json").read_text())
    assert names == {"0": "background", "1": "cat", "2": "dog", "3": "cow", "255": "void"}


@pytest.mark.parametrize("name", ["a:b", "#a", " a", "a\nb", "a\u2028b", "", "cat", "background"])
def test_class_names_that_a_label_map_cannot_hold(
    name: str, mask_set: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match="class '"):
        label_map(("cat", name))
    write_voc(mask_set({"a": np.full((2, 2), 2, np.uint8)}, ("cat", name)), tmp_path, ExportSettings(), silent)
    assert not (tmp_path / "labelmap.txt").exists() and "labelmap.txt is left out" in caplog.text
    assert json.loads((tmp_path / "SegmentationClass" / "classes.json").read_text())["2"] == name


@pytest.mark.parametrize("name", ["a\nb", " a", "#a", "a\u2029b"])
def test_image_names_that_a_list_cannot_hold(name: str, mask_set: Make) -> None:
    exported = mask_set({"0": np.zeros((2, 2), np.uint8)})
    (image,) = exported.images
    renamed = MaskSet(exported.classes, "train", (type(image)(name, name, image.image, (2, 2), image.mask),), "void")
    with pytest.raises(DataError, match="an image list cannot hold the name"):
        image_list(renamed)
