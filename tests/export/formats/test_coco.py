import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from tagseg.data.coco import read_coco
from tagseg.data.true_masks import load_mask
from tagseg.export.coco import write_coco
from tagseg.export.masks import MaskSet
from tagseg.settings.data import DataSettings
from tagseg.settings.export import ExportSettings
from tagseg.system.progress import silent

Make = Callable[..., MaskSet]


def loaded(folder: Path, subset: str = "train") -> COCO:
    """Return the export as pycocotools loads it."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / "annotations" / f"instances_{subset}.json"))


def decoded(coco: COCO, name: str) -> np.ndarray:
    """Return an image's mask as pycocotools decodes its annotations; crowds are 255 where there is nothing else."""
    (image,) = (image for image in coco.imgs.values() if image["file_name"] == name)
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    for entry in sorted(coco.imgToAnns[image["id"]], key=lambda entry: -entry["iscrowd"]):
        mask[coco.annToMask(entry).astype(bool)] = 255 if entry["iscrowd"] else entry["category_id"]
    return mask


@pytest.mark.parametrize(
    "settings",
    [
        ExportSettings(),
        ExportSettings(parts=True),
        ExportSettings(polygons=True, tolerance=0.0),
        ExportSettings(parts=True, polygons=True, tolerance=0.0),
    ],
    ids=["codes", "parts", "polygons", "polygons of parts"],
)
def test_pycocotools_decodes_the_exported_pixels(
    settings: ExportSettings, masks: dict[str, np.ndarray], mask_set: Make, tmp_path: Path
) -> None:
    exported = mask_set(masks)
    write_coco(exported, tmp_path / "out", settings, silent)
    coco = loaded(tmp_path / "out")
    assert {image["file_name"] for image in coco.imgs.values()} == {f"{name}.png" for name in masks}
    assert tuple(category["name"] for category in coco.cats.values()) == exported.classes
    for name, mask in masks.items():
        assert np.array_equal(decoded(coco, f"{name}.png"), mask)
    for entry in coco.anns.values():
        pixels = coco.annToMask(entry)
        rows, columns = np.nonzero(pixels)
        assert entry["area"] == pixels.sum()
        assert entry["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    plain = [entry for entry in coco.anns.values() if entry["image_id"] == 1]
    # The two squares of class 1 touch at a corner, class 3 has two parts.
    assert [entry["category_id"] for entry in plain] == ([1, 2, 3, 3] if settings.parts else [1, 2, 3])


def test_simplified_polygons_stay_near(mask_set: Make, tmp_path: Path) -> None:
    rows, columns = np.indices((60, 80))
    disc = (np.hypot(rows - 30, columns - 40) < 25).astype(np.uint8)
    disc[np.hypot(rows - 30, columns - 40) < 10] = 0
    for tolerance, fewest, most in ((0.0, 120, 200), (1.0, 16, 60)):
        out = tmp_path / f"{tolerance}"
        write_coco(mask_set({"disc": disc}), out, ExportSettings(polygons=True, tolerance=tolerance), silent)
        (entry,) = loaded(out).anns.values()
        assert len(entry["segmentation"]) == 1 and fewest <= len(entry["segmentation"][0]) / 2 <= most
        wrong = decoded(loaded(out), "disc.png") != disc
        reach = np.minimum(abs(np.hypot(rows - 30, columns - 40) - 25), abs(np.hypot(rows - 30, columns - 40) - 10))
        assert not wrong.any() if tolerance == 0 else reach[wrong].max() <= tolerance + 1.5


def test_unsure_pixels_are_crowds(mask_set: Make, tmp_path: Path) -> None:
    mask = np.array([[1, 255, 0], [2, 255, 0]], np.uint8)
    write_coco(mask_set({"a": mask, "b": mask * 0 + 255}), tmp_path, ExportSettings(), silent)
    coco = loaded(tmp_path)
    assert np.array_equal(decoded(coco, "a.png"), mask) and (decoded(coco, "b.png") == 255).all()
    crowds = [entry["category_id"] for entry in coco.imgToAnns[1] if entry["iscrowd"]]
    assert crowds == [1, 2]


def test_our_own_reader_reads_it_back(masks: dict[str, np.ndarray], mask_set: Make, tmp_path: Path) -> None:
    exported = mask_set(masks)
    write_coco(exported, tmp_path / "out", ExportSettings(), silent)
    for image in exported.images:
        target = tmp_path / "out" / "images" / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.image.read_bytes())
    dataset = read_coco(tmp_path / "out", DataSettings())
    assert dataset.classes == exported.classes
    # An image without annotations has no tags: it shows background.
    assert {sample.id for sample in dataset.samples} == set(masks)
    for sample in dataset.samples:
        assert np.array_equal(load_mask(sample, dataset), masks[sample.id])


def test_images_without_any_object(mask_set: Make, tmp_path: Path) -> None:
    write_coco(mask_set({"a": np.zeros((2, 3), np.uint8)}, subset="val"), tmp_path, ExportSettings(), silent)
    content = json.loads((tmp_path / "annotations" / "instances_val.json").read_text())
    assert (len(content["images"]), content["annotations"], len(content["categories"])) == (1, [], 3)
