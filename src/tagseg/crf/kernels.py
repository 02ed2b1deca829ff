"""The loops of mean field inference on the CPU, compiled by Numba; each works on a range of points, lines or rows.

Each row of values belongs to one pixel or one vertex and has one column per label, padded to `FEW` columns or to a
multiple of `MANY`. Rows of `FEW` are handled as four numbers by name, longer rows in loops that the compiler
vectorises. Indices are unsigned: for a signed index, Numba checks at every access whether it counts from the end.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt32

from tagseg.crf.compiled import jit, jit_fused

FEW, MANY = 4, 8
"""Columns of a short row; the number of columns of a longer row is a multiple of `MANY`."""

CHUNK = 64
"""Pixels whose labels are updated together, so that they stay in the innermost cache."""


@jit
def splat(
    first: int,
    last: int,
    size: int,
    corners: UInt32[np.ndarray, "n e"],
    weights: Float32[np.ndarray, "n e"],
    values: Float32[np.ndarray, "n c"],
    buffer: Float32[np.ndarray, "rows c"],
) -> None:
    """Add the weighted values of each half of the points to the rows of their corners."""
    points, middle = len(corners), len(corners) // 2
    for half in range(first, last):
        out = buffer[:size] if half else buffer[size:]
        fill(out, np.float32(0))
        start, stop = (middle, points) if half else (0, middle)
        if values.shape[1] == FEW:
            splat_few(np.uint64(start), np.uint64(stop), corners, weights, values, out)
        else:
            splat_many(np.uint64(start), np.uint64(stop), corners, weights, values, out)


@jit_fused
def splat_few(
    first: Any,
    last: Any,
    corners: UInt32[np.ndarray, "n e"],
    weights: Float32[np.ndarray, "n e"],
    values: Float32[np.ndarray, "n 4"],
    out: Float32[np.ndarray, "m 4"],
) -> None:
    """Add the weighted values of points to the rows of their corners, four columns each."""
    for n in range(first, last):
        value = four(values[n])
        for k in range(np.uint64(corners.shape[1])):
            row = out[corners[n, k]]
            store(row, add_scaled(four(row), weights[n, k], value))


@jit_fused
def splat_many(
    first: Any,
    last: Any,
    corners: UInt32[np.ndarray, "n e"],
    weights: Float32[np.ndarray, "n e"],
    values: Float32[np.ndarray, "n c"],
    out: Float32[np.ndarray, "m c"],
) -> None:
    """Add the weighted values of points to the rows of their corners."""
    for n in range(first, last):
        value = values[n]
        for k in range(np.uint64(corners.shape[1])):
            weight, row = weights[n, k], out[corners[n, k]]
            for c in range(np.uint64(len(row))):
                row[c] += weight * value[c]


@jit
def join(first: int, last: int, source: Float32[np.ndarray, "h c"], target: Float32[np.ndarray, "m c"]) -> None:
    """Add the rows of one buffer to those of another."""
    # Numba vectorises loops over flat arrays, but not array expressions.
    added, sums = source[first:last].reshape(-1), target[first:last].reshape(-1)
    for i in range(len(added)):
        sums[i] += added[i]


@jit
def blur(
    first: int,
    last: int,
    starts: Int64[np.ndarray, "_starts"],
    vertices: UInt32[np.ndarray, "on"],
    x: Float32[np.ndarray, "m c"],
) -> None:
    """Blur lines of vertices by (1/2, 1, 1/2), in place; the values beyond the ends of a line are 0."""
    if x.shape[1] == FEW:
        blur_few(np.uint64(first), np.uint64(last), starts, vertices, x)
    else:
        blur_many(np.uint64(first), np.uint64(last), starts, vertices, x)


@jit_fused
def blur_few(
    first: Any,
    last: Any,
    starts: Int64[np.ndarray, "_starts"],
    vertices: UInt32[np.ndarray, "on"],
    x: Float32[np.ndarray, "m 4"],
) -> None:
    """Blur lines of vertices with four columns each."""
    half, zero = np.float32(0.5), np.float32(0)
    for line in range(first, last):
        before, v = (zero, zero, zero, zero), vertices[starts[line]]
        here = four(x[v])
        for i in range(np.uint64(starts[line] + 1), np.uint64(starts[line + np.uint64(1)])):
            w = vertices[i]
            after = four(x[w])
            store(x[v], add_scaled(add_scaled(here, half, before), half, after))
            before, here, v = here, after, w
        store(x[v], add_scaled(here, half, before))


@jit_fused
def blur_many(
    first: Any,
    last: Any,
    starts: Int64[np.ndarray, "_starts"],
    vertices: UInt32[np.ndarray, "on"],
    x: Float32[np.ndarray, "m c"],
) -> None:
    """Blur lines of vertices with any number of columns."""
    half, width = np.float32(0.5), np.uint64(x.shape[1])
    before = np.empty(width, np.float32)
    for line in range(first, last):
        here = x[vertices[starts[line]]]
        before[:] = 0
        for i in range(np.uint64(starts[line] + 1), np.uint64(starts[line + np.uint64(1)])):
            after = x[vertices[i]]
            for c in range(width):
                value = here[c]
                here[c] = value + half * before[c] + half * after[c]
                before[c] = value
            here = after
        for c in range(width):
            here[c] += half * before[c]


@jit_fused
def add_slice(
    first: int,
    last: int,
    corners: UInt32[np.ndarray, "n e"],
    weights: Float32[np.ndarray, "n e"],
    values: Float32[np.ndarray, "m c"],
    out: Float32[np.ndarray, "n c"],
) -> None:
    """Add to every point the weighted values of its corners."""
    for n in range(np.uint64(first), np.uint64(last)):
        row = out[n]
        if len(row) == FEW:
            total = four(row)
            for k in range(np.uint64(corners.shape[1])):
                total = add_scaled(total, weights[n, k], four(values[corners[n, k]]))
            store(row, total)
        else:
            for k in range(np.uint64(corners.shape[1])):
                weight, value = weights[n, k], values[corners[n, k]]
                for c in range(np.uint64(len(row))):
                    row[c] += weight * value[c]


@jit
def four(row: Float32[np.ndarray, "4"]) -> Any:
    """Return the four numbers of a short row."""
    return row[0], row[1], row[2], row[3]


@jit
def store(row: Float32[np.ndarray, "4"], numbers: Any) -> None:
    """Write the four numbers of a short row."""
    row[0], row[1], row[2], row[3] = numbers


@jit_fused
def add_scaled(total: Any, factor: Any, numbers: Any) -> Any:
    """Return total + factor * numbers, for four numbers."""
    a, b, c, d = numbers
    return total[0] + factor * a, total[1] + factor * b, total[2] + factor * c, total[3] + factor * d


@jit
def fill(array: Float32[np.ndarray, "..."], value: Any) -> None:
    """Set all numbers of an array (see `join` for why it is a loop)."""
    flat = array.reshape(-1)
    for i in range(len(flat)):
        flat[i] = value


@jit
def copy(source: Float32[np.ndarray, "..."], target: Float32[np.ndarray, "..."]) -> None:
    """Copy one array to another (see `join` for why it is a loop)."""
    values, flat = source.reshape(-1), target.reshape(-1)
    for i in range(len(flat)):
        flat[i] = values[i]


@jit
def softmax(first: int, last: int, q: Float32[np.ndarray, "n c"]) -> None:
    """Turn rows of logits into probabilities, in place."""
    for n in range(first, last):
        row = q[n]
        if len(row) == FEW:
            highest = max(max(row[0], row[1]), max(row[2], row[3]))
            row[0], row[1], row[2], row[3] = row[0] - highest, row[1] - highest, row[2] - highest, row[3] - highest
            continue
        highest = row[0]
        for c in range(1, len(row)):
            highest = max(highest, row[c])
        for c in range(len(row)):
            row[c] -= highest
    flat = q[first:last].reshape(-1)
    for i in range(len(flat)):
        flat[i] = exponential(flat[i])
    for n in range(first, last):
        row = q[n]
        if len(row) == FEW:
            factor = np.float32(1) / ((row[0] + row[1]) + (row[2] + row[3]))
            row[0], row[1], row[2], row[3] = row[0] * factor, row[1] * factor, row[2] * factor, row[3] * factor
            continue
        total = np.float32(0)
        for c in range(len(row)):
            total += row[c]
        factor = np.float32(1) / total
        for c in range(len(row)):
            row[c] *= factor


@jit
def exponential(x: Any) -> Any:
    """Return e^x for x <= 0, in float32 and without branches or calls, so that loops over it vectorise.

    e^x = 2^whole * 2^part with |part| <= 1/2; the Taylor series of 2^part up to the sixth power is exact to 1e-7.
    Below -60 the result is 0: the values would soon become denormal, and denormal numbers are slow.
    """
    power = max(x, np.float32(-60)) * np.float32(1 / math.log(2))
    whole = np.floor(power + np.float32(0.5))
    part = (power - whole) * np.float32(math.log(2))
    series = np.float32(1 / 720)
    for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = series * part + np.float32(factor)
    value = series * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return value * np.float32(x > np.float32(-60))


@jit
def update(
    first: int,
    last: int,
    start: Float32[np.ndarray, "n c"],
    corners_one: UInt32[np.ndarray, "n e"],
    weights_one: Float32[np.ndarray, "n e"],
    values_one: Float32[np.ndarray, "m c"],
    corners_two: UInt32[np.ndarray, "n e2"],
    weights_two: Float32[np.ndarray, "n e2"],
    values_two: Float32[np.ndarray, "m2 c"],
    q: Float32[np.ndarray, "n c"],
) -> None:
    """Update the probabilities of pixels from the filtered values of both kernels."""
    for left in range(first, last, CHUNK):
        right = min(left + CHUNK, last)
        copy(start[left:right], q[left:right])
        add_slice(left, right, corners_one, weights_one, values_one, q)
        add_slice(left, right, corners_two, weights_two, values_two, q)
        softmax(left, right, q)
