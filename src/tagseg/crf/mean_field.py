"""Mean field inference on the CPU (Kraehenbuehl and Koltun 2011, algorithm 1), by Numba.

Values lie in rows, a row of labels for a pixel or a vertex, filled up to four labels, or to a multiple
of eight, and worked on by vectors of as many.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt32

from tagseg.crf.compiled import fetch, jit
from tagseg.crf.lattice import Lattice, Runner, run_here
from tagseg.crf.vectors import add_scaled, eight, four, load, store

FEW, MANY = 4, 8
"""Labels of a short row, and what the labels of a longer one are a multiple of."""

NEVER = -1e4
"""Log-probability of the labels that fill up a row: their probability is 0 in every step."""

AHEAD, SOON = 24, 8
"""How many vertices, and how many points, ahead of their turn rows are fetched."""

SMALL = 1 << 17
"""Values up to this number are blurred by one thread."""

CHUNK = 64
"""Pixels whose labels are updated together, so that they stay in the innermost cache."""


def mean_field(
    logs: Float32[np.ndarray, "n l"], kernels: Sequence[tuple[Lattice, float]], steps: int, run: Runner
) -> Float32[np.ndarray, "n l"]:
    """Return the labels' probabilities after some steps of mean field inference (algorithm 1).

    A step multiplies each probability of `logs` by e to the power of `weight` times the filtered probabilities of its
    label, over two kernels (the Potts model of section 2, up to a factor that all labels share), and normalises.
    """
    n, labels = logs.shape
    width = FEW if labels <= FEW else -(-labels // MANY) * MANY
    start = np.full((n, width), NEVER, np.float32)
    start[:, :labels] = logs
    one, two = (normalised(lattice, weight, run) for lattice, weight in kernels)
    buffer_one, buffer_two = (
        np.empty((lattice.size + lattice.first_half, width), np.float32) for lattice in (one, two)
    )
    q = start.copy()
    run(softmax, n, q)
    for _ in range(steps):
        values_one = filtered(one, q, buffer_one, run)
        values_two = filtered(two, q, buffer_two, run)
        run(update, n, start, one.corners, one.weights, values_one, two.corners, two.weights, values_two, q)
    return q[:, :labels]


def normalised(lattice: Lattice, weight: float, run: Runner) -> Lattice:
    """Return the lattice with the weights of its kernel, normalised symmetrically, times `weight`.

    The kernel K becomes D K D with D = diag(K 1)^(-1/2), as in Kraehenbuehl and Koltun's own code: without, pixels in
    crowded parts of the feature space would hear more than others. Half of the factors, in the logarithm, goes into
    splatting and half into slicing, so that both have the same weights; the given ones are overwritten.
    """
    n = len(lattice.corners)
    sums, ones = np.zeros((n, FEW), np.float32), np.ones((n, FEW), np.float32)
    buffer = np.empty((lattice.size + lattice.first_half, FEW), np.float32)
    run(add_slice, n, lattice.corners, lattice.weights, filtered(lattice, ones, buffer, run), sums)
    lattice.weights[:] *= np.float32(math.sqrt(weight)) / np.sqrt(sums[:, :1])
    return lattice


def filtered(
    lattice: Lattice, values: Float32[np.ndarray, "n c"], buffer: Float32[np.ndarray, "rows c"], run: Runner
) -> Float32[np.ndarray, "m c"]:
    """Splat the points' values and blur them, in `buffer`, a part of which is returned.

    Two threads splat half of the points each, always two, so that sums do not depend on how many threads there are. The
    first half has rows of its own at the buffer's end.
    """
    run(splat, 2, lattice.size, lattice.corners, lattice.weights, values, buffer)
    out, first_half = buffer[: lattice.size], buffer[lattice.size :]
    # A few small rows are done sooner than handed over.
    run = run if out.size > SMALL else run_here
    run(join, len(first_half), first_half, out)
    for axis in lattice.axes:
        run(blur, len(axis.starts) - 1, axis.starts, axis.vertices, out)
    return out


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
        out[:] = 0
        first_point, last_point = (middle, points) if half else (0, middle)
        if values.shape[1] == FEW:
            _splat(first_point, last_point, corners, weights, values, out, four(), FEW)
        else:
            _splat(first_point, last_point, corners, weights, values, out, eight(), MANY)


@jit
def _splat(
    first: int,
    last: int,
    corners: UInt32[np.ndarray, "n e"],
    weights: Float32[np.ndarray, "n e"],
    values: Float32[np.ndarray, "n c"],
    out: Float32[np.ndarray, "m c"],
    zeros: Any,
    count: int,
) -> None:
    for n in range(first, last):
        if count == MANY:
            for k in range(corners.shape[1]):
                fetch(out, corners[min(n + SOON, last - 1), k])
        for k in range(corners.shape[1]):
            weight, v = weights[n, k], corners[n, k]
            for c in range(0, values.shape[1], count):
                store(out, v, c, add_scaled(load(out, v, c, zeros), weight, load(values, n, c, zeros)))


@jit
def join(first: int, last: int, source: Float32[np.ndarray, "h c"], target: Float32[np.ndarray, "m c"]) -> None:
    """Add the rows of one buffer to another's."""
    target[first:last] += source[first:last]


@jit
def blur(
    first: int,
    last: int,
    starts: Int64[np.ndarray, "_starts"],
    vertices: UInt32[np.ndarray, "on"],
    x: Float32[np.ndarray, "m c"],
) -> None:
    """Blur lines of vertices by (1/2, 1, 1/2), in place; beyond a line's ends there is nothing."""
    if x.shape[1] == FEW:
        _blur(first, last, starts, vertices, x, four(), FEW)
    else:
        _blur(first, last, starts, vertices, x, eight(), MANY)


@jit
def _blur(
    first: int,
    last: int,
    starts: Int64[np.ndarray, "_starts"],
    vertices: UInt32[np.ndarray, "on"],
    x: Float32[np.ndarray, "m c"],
    zeros: Any,
    count: int,
) -> None:
    half, end = np.float32(0.5), len(vertices) - 1
    for line in range(first, last):
        for c in range(0, x.shape[1], count):
            v = vertices[starts[line]]
            before, here = zeros, load(x, v, c, zeros)
            for at in range(starts[line] + 1, starts[line + 1]):
                if c == 0:
                    fetch(x, vertices[min(at + AHEAD, end)])
                w = vertices[at]
                after = load(x, w, c, zeros)
                store(x, v, c, add_scaled(add_scaled(here, half, before), half, after))
                before, here, v = here, after, w
            store(x, v, c, add_scaled(here, half, before))


@jit
def add_slice(
    first: int,
    last: int,
    corners: UInt32[np.ndarray, "n e"],
    weights: Float32[np.ndarray, "n e"],
    values: Float32[np.ndarray, "m c"],
    out: Float32[np.ndarray, "n c"],
) -> None:
    """Add to every point the weighted values of its corners."""
    if out.shape[1] == FEW:
        _add_slice(first, last, corners, weights, values, out, four(), FEW)
    else:
        _add_slice(first, last, corners, weights, values, out, eight(), MANY)


@jit
def _add_slice(
    first: int,
    last: int,
    corners: UInt32[np.ndarray, "n e"],
    weights: Float32[np.ndarray, "n e"],
    values: Float32[np.ndarray, "m c"],
    out: Float32[np.ndarray, "n c"],
    zeros: Any,
    count: int,
) -> None:
    for n in range(first, last):
        if count == MANY:
            for k in range(corners.shape[1]):
                fetch(values, corners[min(n + SOON, len(corners) - 1), k])
        for c in range(0, out.shape[1], count):
            total = load(out, n, c, zeros)
            for k in range(corners.shape[1]):
                total = add_scaled(total, weights[n, k], load(values, corners[n, k], c, zeros))
            store(out, n, c, total)


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
    Below -60 it is 0: what is left would soon become denormal, and those numbers are slow.
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
    """Update pixels' probabilities from the filtered values of both kernels."""
    for left in range(first, last, CHUNK):
        right = min(left + CHUNK, last)
        q[left:right] = start[left:right]
        add_slice(left, right, corners_one, weights_one, values_one, q)
        add_slice(left, right, corners_two, weights_two, values_two, q)
        softmax(left, right, q)
