"""Scores and maps at another size: the size at which masks are refined, and strips of rows at full size."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from tagseg.settings.crf import CrfSettings
from tagseg.settings.masks import MaskSettings

_STRIP = 1 << 20
"""Map values that are enlarged at a time: 4 MB, and as much again a few times while they are decided."""


REFERENCE_SIDE = 500
"""Long side in pixels of the images that the reach of the CRF's kernels is given for: that of Pascal VOC's."""


def at_size(crf: CrfSettings, size: tuple[int, int]) -> CrfSettings:
    """Return the settings with the reach of both kernels in pixels of an image of `size`: they are given for images
    whose long side is `REFERENCE_SIDE`, so that masks do not depend on how large an image is stored."""
    factor = max(size) / REFERENCE_SIDE
    return dataclasses.replace(crf, gaussian_sxy=crf.gaussian_sxy * factor, bilateral_sxy=crf.bilateral_sxy * factor)


def refined_size(size: tuple[int, int], settings: MaskSettings) -> tuple[int, int]:
    """Return the (height, width) at which the maps of an image of `size` are refined: its own up to `max_side`."""
    reduce = min(1.0, settings.max_side / max(size))
    return max(round(size[0] * reduce), 1), max(round(size[1] * reduce), 1)


def strips(
    scores: Float[np.ndarray, "k h w"], size: tuple[int, int]
) -> Iterator[tuple[slice, Float[np.ndarray, "k rows W"]]]:
    """Yield scores enlarged to `size` (height, width), bilinear, a strip of rows at a time: which rows, and the scores.

    At `size` itself only a strip exists.
    """
    height = max(_STRIP // max(len(scores) * size[1], 1), 1)
    for top in range(0, size[0], height):
        rows = slice(top, min(top + height, size[0]))
        yield rows, _strip(scores, size, rows)


def _strip(scores: Float[np.ndarray, "k h w"], size: tuple[int, int], rows: slice) -> Float[np.ndarray, "k rows W"]:
    """The given rows of scores enlarged to `size`, without enlarging the others."""
    height, width = scores.shape[1:]
    if (height, width) == size:
        return scores[:, rows]
    # The part that the rows cover; neighbours beyond it still count, so that strips join without a seam.
    box = (0, rows.start * height / size[0], width, rows.stop * height / size[0])
    target = size[1], rows.stop - rows.start
    strips = [Image.fromarray(values).resize(target, Image.Resampling.BILINEAR, box) for values in scores]
    return np.stack([np.asarray(strip) for strip in strips]) if strips else np.zeros((0, *target[::-1]), np.float32)


def enlarge(maps: UInt8[np.ndarray, "k h w"], size: tuple[int, int]) -> Float[np.ndarray, "k H W"]:
    """Return maps at `size` (height, width), bilinear, as shares of the peak 0..1."""
    large = [
        Image.fromarray(values.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR) for values in maps
    ]
    return np.stack([np.asarray(values) for values in large]) / 255 if large else np.zeros((0, *size), np.float32)
