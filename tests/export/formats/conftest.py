"""Sets of masks and small runs to export, with realistic names."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.export.masks import MaskedImage, MaskSet
from tagseg.masks.mask_files import mask_file, write_mask
from tagseg.run.folder import Run
from tagseg.settings.settings import Settings

CLASSES = ("cat", "big dog", "Kühe: 'alle' <&> \"da\"")


@pytest.fixture
def masks() -> dict[str, np.ndarray]:
    """Return masks by id: parts that touch at a corner, a hole with an island, single pixels, and an empty mask."""
    ring = np.zeros((9, 14), np.uint8)
    ring[1:8, 1:8] = 1
    ring[3:6, 3:6] = 0
    ring[4, 4] = 2
    ring[8, 8] = 1
    ring[0, 13], ring[8, 0] = 3, 3
    noise = np.random.default_rng(1).integers(0, 4, (7, 5), np.uint8)
    return {"plain": ring, "sub folder/ünï ✓ [x] #1": noise, "sub folder/empty.v2": np.zeros((3, 4), np.uint8)}


@pytest.fixture
def mask_set(tmp_path: Path) -> Callable[..., MaskSet]:
    """Return a function that writes images and masks and returns them as a set."""

    def make(masks: Mapping[str, np.ndarray], classes: tuple[str, ...] = CLASSES, **others: Any) -> MaskSet:
        images = []
        for number, (name, mask) in enumerate(masks.items()):
            image, file = tmp_path / f"{number}.png", mask_file(tmp_path / "masks", str(number))
            Image.new("RGB", mask.shape[::-1], (number, 9, 9)).save(image)
            write_mask(file, mask)
            tags = tuple(int(value) for value in np.unique(mask) if 0 < value < 255)
            images.append(MaskedImage(name, f"{name}.png", image, (mask.shape[0], mask.shape[1]), file, tags))
        settings: dict[str, Any] = {"subset": "train", "unsure": "void", **others}
        return MaskSet(classes, images=tuple(images), **settings)

    return make


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run with masks and predictions.

    Its images are in folders; two differ only in their suffix, one is rotated. Every mask of a training image has one
    unsure pixel.
    """
    data = tmp_path / "data"
    names = {"cat": ["1.png", "2.jpg", "2.png"], "dog": ["1.png", "ä b.png", "turned.jpg"]}
    rows = []
    for number, (tag, name) in enumerate((tag, name) for tag, found in names.items() for name in found):
        path = data / "images" / tag / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "turned.jpg" else 1
        Image.new("RGB", (8, 6), (number * 40, 0, 0)).save(path, exif=exif)
        rows.append({"image": f"{tag}/{name}", "tags": [tag], "split": "train"})
    Image.new("RGB", (5, 4)).save(data / "images" / "new.png")
    rows.append({"image": "new.png", "tags": ["cat"], "split": "val"})
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = Run(tmp_path / "run")
    run.root.mkdir()
    run.settings_file.write_text(Settings.from_dict({"data": {"min_images": 1}}).to_toml())
    stages = {name: {"seconds": 1.0, "peak_mb": 1, "files": {}} for name in ("train", "masks", "segment", "evaluate")}
    run.manifest_file.write_text(json.dumps({"tagseg": "0", "data": str(data), "stages": stages}))
    for number, name in enumerate(("cat/1", "cat/2.jpg", "cat/2.png", "dog/1", "dog/ä b", "dog/turned")):
        mask = np.zeros((8, 6) if name == "dog/turned" else (6, 8), np.uint8)
        mask[1:3, 1 : 2 + number % 3] = 1 if name.startswith("cat") else 2
        write_mask(mask_file(run.decided_masks, name), mask)
        mask[5, 5] = 255
        write_mask(mask_file(run.masks, name), mask)
    write_mask(mask_file(run.predictions, "new"), np.full((4, 5), 2, np.uint8))
    return run
