"""Sets of masks and small runs to export, with realistic names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.export.masks import MaskedImage, MaskSet
from tagseg.masks.mask_files import mask_file, write_mask
from tagseg.run.folder import Run

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
def run(masked_run: Run) -> Run:
    """Return a run with masks and predictions."""
    return masked_run
