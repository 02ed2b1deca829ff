"""A mask, or maps, painted over their image."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tagseg.data.records import VOID
from tagseg.masks.palette import shown_colours
from tagseg.masks.resize import enlarge

_ROWS = 256
"""Rows of an overlay that are painted at a time."""


def overlay(image: Image.Image, mask: UInt8[np.ndarray, "h w"], opacity: float = 0.55) -> Image.Image:
    """Return an RGB image with the colours of its mask painted over everything but the background and unsure pixels."""
    palette, painted = np.array(shown_colours(255), np.float32), np.array(image)
    # A strip of rows at a time: as floats, an image takes four times its memory.
    for top in range(0, len(mask), _ROWS):
        pixels, ids = painted[top : top + _ROWS], mask[top : top + _ROWS]
        covered = (ids > 0) & (ids != VOID)
        pixels[covered] = ((1 - opacity) * pixels[covered] + opacity * palette[ids[covered]]).round().astype(np.uint8)
    return Image.fromarray(painted)


def overlay_maps(image: Image.Image, maps: UInt8[np.ndarray, "k h w"], classes: Sequence[int]) -> Image.Image:
    """Return an RGB image with its maps (one or more) painted over it: where a map is highest, the
    colour of its class, as strong as the map."""
    strength = enlarge(maps, (image.height, image.width))
    colour = np.array(shown_colours(max(classes)), np.float32)[np.array(classes)[strength.argmax(0)]]
    share = strength.max(0)[..., None] * 0.85
    return Image.fromarray((np.asarray(image) * (1 - share) + colour * share).round().astype(np.uint8))
