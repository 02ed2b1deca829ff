"""Class probabilities of a large picture from overlapping windows. This module imports no PyTorch."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8

from tagseg.segment.resolution import CELL

ClassProbabilities = Float32[np.ndarray, "ids y x"]

WINDOW_OVERLAP = 0.25
"""Least share of a window's side that overlaps with the next window: near its edge a window misses the most of what
surrounds a pixel."""


def windowed_probabilities(
    network: Callable[[UInt8[np.ndarray, "b h w 3"]], Float32[np.ndarray, "b ids h w"]],
    picture: UInt8[np.ndarray, "h w 3"],
    window: int,
    batch: int,
) -> ClassProbabilities:
    """Return the class probabilities of a picture's cells of 4 x 4 pixels, computed in overlapping windows.

    `network` returns the probabilities of up to `batch` windows at a time. Where windows overlap, probabilities are
    averaged, weighted by a cell's distance from the edge of the window. The picture's sides must be multiples of 4; a
    window's side is `window`, rounded down to a multiple of 4, or the picture's side if that is smaller. Only the cells
    and `batch` windows are in memory.
    """
    height, width = picture.shape[:2]
    assert height % CELL == width % CELL == 0, f"sides must be multiples of {CELL}, got {height} x {width}"
    side = window // CELL * CELL
    high, wide = min(side, height), min(side, width)
    places = [(top, left) for top in window_starts(height, high) for left in window_starts(width, wide)]
    weights = window_weights(high // CELL)[:, None] * window_weights(wide // CELL)
    weight = np.zeros((height // CELL, width // CELL), np.float32)
    total = np.zeros((0, *weight.shape), np.float32)
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        found = network(np.stack([picture[top : top + high, left : left + wide] for top, left in some]))
        cells = found.reshape(*found.shape[:2], high // CELL, CELL, wide // CELL, CELL).mean((3, 5)) * weights
        if not total.size:
            total = np.zeros((found.shape[1], *weight.shape), np.float32)
        for (top, left), values in zip(some, cells, strict=True):
            place = (slice(top // CELL, (top + high) // CELL), slice(left // CELL, (left + wide) // CELL))
            total[:, *place] += values
            weight[place] += weights
    total /= weight
    return total


def window_starts(length: int, window: int) -> list[int]:
    """Return the starts of windows along a side of `length` pixels: multiples of 4, evenly spaced, and as few as
    overlap enough."""
    step = max(int(window * (1 - WINDOW_OVERLAP)), CELL)
    count = math.ceil((length - window) / step) + 1
    return [round(i * (length - window) / max(count - 1, 1) / CELL) * CELL for i in range(count)]


def window_weights(cells: int) -> Float32[np.ndarray, "cells"]:
    """Return the weights of a window's cells along a side, from 1 in the middle down to almost 0 at both edges."""
    weights: Float32[np.ndarray, cells] = np.sin((np.arange(cells) + 0.5) * math.pi / cells).astype(np.float32) ** 2
    return weights
