"""The resolution at which images are predicted. This module imports no PyTorch, so that reading processes start
quickly."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tagseg.data.images import reduced_size

CELL = 4
"""Side in pixels of the cells that probabilities found in windows are stored for: a quarter of the resolution, as fine
as networks resolve, with a sixteenth of the memory."""


@dataclass(frozen=True)
class Resolution:
    """The resolution at which images are predicted: larger images are reduced to a long side of `max_side` pixels (0:
    never); if that exceeds `window` pixels, they are predicted in windows."""

    max_side: int
    window: int


def resize_to_picture(image: Image.Image, resolution: Resolution) -> UInt8[np.ndarray, "h w 3"]:
    """Return an RGB image as a picture: its pixels at the resolution of the prediction."""
    w, h = reduced_size(image.size, resolution.max_side) if resolution.max_side else image.size
    if max(h, w) > resolution.window:
        h, w = (max(round(side / CELL), 1) * CELL for side in (h, w))
    return np.array(image.resize((w, h), Image.Resampling.BICUBIC, reducing_gap=2.0))
