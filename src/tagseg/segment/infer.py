"""Class probabilities of images: averaged over scales and the mirrored image, and in windows for large images."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from tagseg.networks.segmenters import Segmenter
from tagseg.segment.resolution import CELL
from tagseg.settings.predict import Precision

ClassProbabilities = Float32[np.ndarray, "ids y x"]

WINDOW_OVERLAP = 0.25
"""Least share of a window's side that overlaps with the next window: near its edge a window misses the most of what
surrounds a pixel."""

MAX_PIXELS_WITH_MIRROR = 100_000
"""Pixels up to which a CPU is faster with an image and its mirror image in one call. With twice as many pixels, two
calls are a fifth faster and need less memory."""


def as_tensor(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 h w"]:
    """Return a picture as a tensor that shares its memory."""
    return torch.from_numpy(picture).permute(2, 0, 1)


@torch.inference_mode()
def probabilities(
    network: Segmenter,
    pictures: Float[Tensor, "b 3 h w"],
    scales: tuple[float, ...],
    flip: bool,
    precision: Precision = "fp32",
) -> Float32[Tensor, "b ids h w"]:
    """Return the class probabilities of images (RGB in 0..1), averaged over scales and (`flip`) mirror images."""
    h, w = pictures.shape[2:]
    total: Tensor | None = None
    for scale in scales:
        size = network.fitting_size(h * scale, w * scale)
        scaled = resized(pictures, size, antialias=scale < 1)
        for call in _calls(scaled, flip):
            views = torch.cat([scaled.flip(-1) if mirrored else scaled for mirrored in call])
            with torch.autocast(views.device.type, torch.bfloat16, enabled=precision == "bf16"):
                scores = network(views)
            shares = resized(scores.float(), (h, w)).softmax(1).chunk(len(call))
            for mirrored, share in zip(call, shares, strict=True):
                upright = share.flip(-1) if mirrored else share
                total = upright if total is None else total.add_(upright)
    assert total is not None
    return total.div_(len(scales) * (1 + flip))


def _calls(pictures: Float[Tensor, "b 3 h w"], flip: bool) -> list[tuple[bool, ...]]:
    """Return, for each call of the network, the views that it gets: as they are (False) or mirrored (True)."""
    if not flip:
        return [(False,)]
    small = len(pictures) * pictures.shape[2] * pictures.shape[3] <= MAX_PIXELS_WITH_MIRROR
    return [(False, True)] if small or pictures.device.type != "cpu" else [(False,), (True,)]


def windowed_probabilities(
    network: Callable[[Tensor], Tensor],
    picture: UInt8[Tensor, "3 h w"],
    window: int,
    batch: int,
) -> Float32[Tensor, "ids y x"]:
    """Return the class probabilities of a picture's cells of 4 x 4 pixels, computed in overlapping windows.

    `network` returns the probabilities (b ids h w) of up to `batch` windows (uint8, b 3 h w) at a time. Where windows
    overlap, probabilities are averaged, weighted by a cell's distance from the edge of the window. The picture's sides
    must be multiples of 4; a window's side is `window`, rounded down to a multiple of 4, or the picture's side if that
    is smaller. Only the cells and `batch` windows are in memory.
    """
    height, width = picture.shape[1:]
    assert height % CELL == width % CELL == 0, f"sides must be multiples of {CELL}, got {height} x {width}"
    side = window // CELL * CELL
    high, wide = min(side, height), min(side, width)
    places = [(top, left) for top in window_starts(height, high) for left in window_starts(width, wide)]
    weights = window_weights(high // CELL)[:, None] * window_weights(wide // CELL)
    weight = torch.zeros(height // CELL, width // CELL)
    total = torch.zeros(0)
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        pixels = torch.stack([picture[:, top : top + high, left : left + wide] for top, left in some])
        found = F.avg_pool2d(network(pixels), CELL).cpu() * weights
        if not total.numel():
            total = torch.zeros(found.shape[1], *weight.shape)
        for (top, left), values in zip(some, found, strict=True):
            cells = (slice(top // CELL, (top + high) // CELL), slice(left // CELL, (left + wide) // CELL))
            total[:, *cells] += values
            weight[cells] += weights
    return total.div_(weight)


def window_starts(length: int, window: int) -> list[int]:
    """Return the starts of windows along a side of `length` pixels: multiples of 4, evenly spaced, and as few as
    overlap enough."""
    step = max(int(window * (1 - WINDOW_OVERLAP)), CELL)
    count = math.ceil((length - window) / step) + 1
    return [round(i * (length - window) / max(count - 1, 1) / CELL) * CELL for i in range(count)]


def window_weights(cells: int) -> Float32[Tensor, "cells"]:
    """Return the weights of a window's cells along a side, from 1 in the middle down to almost 0 at both edges."""
    return torch.sin((torch.arange(cells) + 0.5) * math.pi / cells) ** 2


def resized(
    values: Float[Tensor, "b c h w"], size: tuple[int, int], antialias: bool = False
) -> Float[Tensor, "b c H W"]:
    """Return values resized to (height, width) `size`, bilinear; values of that size are returned as they are."""
    if tuple(values.shape[2:]) == size:
        return values
    return F.interpolate(values, size, mode="bilinear", align_corners=False, antialias=antialias)
