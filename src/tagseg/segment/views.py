"""Matrices that resize a picture for the network, and its scores back to the picture's size.

This module imports no PyTorch. Resizing is linear along each axis, so it is a product with a matrix. The weights are
those of `torch.nn.functional.interpolate` (bilinear): half-pixel centres, or corners on corners, and with antialias a
triangle as wide as the source pixels that one target pixel covers.
"""

import functools
import math

import numpy as np
from jaxtyping import Float32, Float64, Int64

_KEPT = 48
"""Matrices that are kept for the next images, which often have the same sizes: some twenty megabytes of them."""


@functools.lru_cache(_KEPT)
def scaling(source: int, target: int, antialias: bool) -> Float32[np.ndarray, "target source"]:
    """Return the matrix that resizes `source` pixels to `target` pixels."""
    matrix: Float32[np.ndarray, "target source"] = _matrix(source, target, False, antialias).astype(np.float32)
    return matrix


@functools.lru_cache(_KEPT)
def returning(
    cells: int, fitting: int, target: int, cornered: bool, shift: float = 0.0
) -> Float32[np.ndarray, "target cells"]:
    """Return the matrix that resizes `cells` scores to the `fitting` pixels that the network was given, and these to
    `target` pixels. `cornered`: whether the corner cells lie on the corner pixels, `shift`: by what part of a
    cell they lie further to the right and down."""
    enlarging = _matrix(cells, fitting, cornered, antialias=False, shift=shift)
    places, weights = _neighbours(fitting, target, cornered=False, antialias=False)
    matrix: Float64[np.ndarray, "target cells"] = (weights[..., None] * enlarging[places]).sum(1)
    return matrix.astype(np.float32)


def _matrix(
    source: int, target: int, cornered: bool, antialias: bool, shift: float = 0.0
) -> Float64[np.ndarray, "target source"]:
    places, weights = _neighbours(source, target, cornered, antialias, shift)
    matrix = np.zeros((target, source))
    np.put_along_axis(matrix, places, weights, 1)
    return matrix


def _neighbours(
    source: int, target: int, cornered: bool, antialias: bool, shift: float = 0.0
) -> tuple[Int64[np.ndarray, "target k"], Float64[np.ndarray, "target k"]]:
    """Return which source pixels every target pixel is a mean of, and their weights, whose sum is 1."""
    if source == target and not shift:
        return np.arange(target)[:, None], np.ones((target, 1))
    places = np.arange(target)
    corner = places * ((source - 1) / max(target - 1, 1))
    centres = corner if cornered else (places + 0.5) * (source / target) - 0.5
    centres = centres - shift
    reach = max(source / target, 1.0) if antialias else 1.0
    if not antialias:
        centres = np.clip(centres, 0, source - 1)
    many = min(math.ceil(2 * reach) + 1, source)
    first = np.clip(np.ceil(centres - reach).astype(np.int64), 0, source - many)
    near = first[:, None] + np.arange(many)
    weights = np.maximum(1 - np.abs(near - centres[:, None]) / reach, 0)
    return near, weights / weights.sum(1, keepdims=True)
