"""Pictures at several scales for the network, and its scores back at their size, in compiled loops.

This module imports no PyTorch. Resizing is linear in each direction, so it is a matrix with a few neighbouring weights
per row (`Band`). The weights are those of `torch.nn.functional.interpolate` (bilinear): half-pixel centres, or corners
on corners, and with antialias a triangle as wide as the source pixels that one target pixel covers.
"""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from tagseg.crf.compiled import jit_fused
from tagseg.crf.kernels import exponential


@dataclass(frozen=True)
class Band:
    """A matrix that resizes: target position t is the sum over k of `weights[k, t]` times source `starts[t] + k`."""

    starts: Int64[np.ndarray, "target"]
    weights: Float32[np.ndarray, "k target"]

    def mirrored(self) -> "Band":
        """Return the matrix whose result is the other way round."""
        return Band(np.ascontiguousarray(self.starts[::-1]), np.ascontiguousarray(self.weights[:, ::-1]))


@functools.lru_cache(1024)
def scaling(source: int, target: int, antialias: bool) -> Band:
    """Return the matrix that resizes `source` pixels to `target` pixels."""
    return _band(_linear(source, target, cornered=False, antialias=antialias))


@functools.lru_cache(1024)
def returning(cells: int, fitting: int, target: int, cornered: bool) -> Band:
    """Return the matrix that resizes `cells` scores to the `fitting` pixels that the network was given, and these to
    `target` pixels."""
    enlarging = _linear(cells, fitting, cornered, antialias=False)
    return _band(_linear(fitting, target, cornered=False, antialias=False) @ enlarging)


def _linear(source: int, target: int, cornered: bool, antialias: bool) -> Float64[np.ndarray, "target source"]:
    """Return the matrix that resizes linearly."""
    places, pixels = np.arange(target), np.arange(source)
    if source == target:
        return np.eye(source)
    corner = places * ((source - 1) / max(target - 1, 1))
    centres = corner if cornered else (places + 0.5) * (source / target) - 0.5
    reach = max(source / target, 1.0) if antialias else 1.0
    if not antialias:
        centres = np.clip(centres, 0, source - 1)
    shares = np.maximum(1 - np.abs(pixels - centres[:, None]) / reach, 0)
    matrix: Float64[np.ndarray, "target source"] = shares / shares.sum(1, keepdims=True)
    return matrix


def _band(matrix: Float64[np.ndarray, "target source"]) -> Band:
    used = matrix != 0
    first, last = used.argmax(1), matrix.shape[1] - used[:, ::-1].argmax(1)
    wide = int((last - first).max())
    starts = np.minimum(first, matrix.shape[1] - wide)
    weights = np.take_along_axis(matrix, starts[:, None] + np.arange(wide), 1)
    return Band(starts.astype(np.int64), np.ascontiguousarray(weights.T.astype(np.float32)))


def scaled_views(
    picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], antialias: bool, mirror: bool
) -> Float32[np.ndarray, "v 3 H W"]:
    """Return a picture as RGB in 0..1 at (height, width) `size`, and with `mirror` its mirror image after it."""
    rows, columns = (scaling(picture.shape[axis], size[axis], antialias) for axis in (0, 1))
    views = np.empty((1 + mirror, 3, *size), np.float32)
    _scale(np.ascontiguousarray(picture), rows.starts, rows.weights, columns.starts, columns.weights, views)
    return views


def add_shares(
    scores: Float32[np.ndarray, "v ids y x"],
    fitting: tuple[int, int],
    cornered: bool,
    total: Float32[np.ndarray, "ids h w"],
) -> None:
    """Add to `total` the softmax of the scores at its size; the scores of the second view are of the mirror image.

    `fitting` is the (height, width) of the views that the network was given. `cornered`: whether its scores lie with
    their corner cells on the corner pixels.
    """
    h, w = total.shape[1:]
    rows, columns = (returning(scores.shape[2 + i], fitting[i], (h, w)[i], cornered) for i in (0, 1))
    given = np.ascontiguousarray(scores)
    for view, table in enumerate((columns, columns.mirrored())[: len(scores)]):
        _add_shares(given[view], rows.starts, rows.weights, table.starts, table.weights, total)


@jit_fused
def _scale(
    picture: UInt8[np.ndarray, "h w 3"],
    row_starts: Int64[np.ndarray, "H"],
    row_weights: Float32[np.ndarray, "k H"],
    column_starts: Int64[np.ndarray, "W"],
    column_weights: Float32[np.ndarray, "l W"],
    views: Float32[np.ndarray, "v 3 H W"],
) -> None:
    """Fill the views with the resized picture, rows first."""
    height, width = views.shape[2], views.shape[3]
    flat = picture.reshape(picture.shape[0], -1)
    line = np.empty(flat.shape[1], np.float32)
    unit = np.float32(1 / 255)
    for y in range(height):
        line[:] = 0
        for k in range(row_weights.shape[0]):
            weight, source = row_weights[k, y] * unit, flat[np.uint64(row_starts[y] + k)]
            for x in range(len(line)):
                line[x] += weight * np.float32(source[x])
        for c in range(3):
            target = views[0, c, y]
            target[:] = 0
            for k in range(column_weights.shape[0]):
                for x in range(width):
                    target[x] += column_weights[k, x] * line[np.uint64(3 * (column_starts[x] + k) + c)]
            if views.shape[0] > 1:
                mirrored = views[1, c, y]
                for x in range(width):
                    mirrored[x] = target[np.uint64(width - 1 - x)]


@jit_fused
def _add_shares(
    scores: Float32[np.ndarray, "ids y x"],
    row_starts: Int64[np.ndarray, "h"],
    row_weights: Float32[np.ndarray, "k h"],
    column_starts: Int64[np.ndarray, "w"],
    column_weights: Float32[np.ndarray, "l w"],
    total: Float32[np.ndarray, "ids h w"],
) -> None:
    """Add the softmax of the resized scores to `total`, a row at a time."""
    ids, height, width = total.shape
    line, large = np.empty(scores.shape[2], np.float32), np.empty((ids, width), np.float32)
    highest, sums = np.empty(width, np.float32), np.empty(width, np.float32)
    for y in range(height):
        for i in range(ids):
            line[:] = 0
            for k in range(row_weights.shape[0]):
                weight, source = row_weights[k, y], scores[i, np.uint64(row_starts[y] + k)]
                for x in range(len(line)):
                    line[x] += weight * source[x]
            target = large[i]
            target[:] = 0
            for k in range(column_weights.shape[0]):
                for x in range(width):
                    target[x] += column_weights[k, x] * line[np.uint64(column_starts[x] + k)]
            if i == 0:
                for x in range(width):
                    highest[x] = target[x]
            else:
                for x in range(width):
                    highest[x] = max(highest[x], target[x])
        sums[:] = 0
        for i in range(ids):
            target = large[i]
            for x in range(width):
                target[x] = exponential(target[x] - highest[x])
                sums[x] += target[x]
        for x in range(width):
            sums[x] = np.float32(1) / sums[x]
        for i in range(ids):
            target, added = large[i], total[i, y]
            for x in range(width):
                added[x] += target[x] * sums[x]
