"""The permutohedral lattice on the CPU (Adams, Baek and Davis 2010): Gaussian filters in many dimensions, with Numba.

The values of the points are splatted to the corners of the simplices around them, blurred along the axes of the
lattice, and sliced back to the points. `build_lattices` does the part that depends only on the points; the filter
itself is in mean_field.py. The kernels release the interpreter lock and process a range of points or vertices, so that
threads can share the work. The result does not depend on the number of threads.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt32, UInt64

from tagseg.crf.compiled import jit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio: spreads keys over a hash table (Knuth, The Art of Computer Programming 3, 6.4)."""


class Axis(NamedTuple):
    """The lines of vertices along one axis of a lattice: line i is `vertices[starts[i] : starts[i + 1]]`, each vertex
    the neighbour of the previous one. A vertex without neighbours along this axis is on no line."""

    starts: Int64[np.ndarray, "_starts"]
    vertices: UInt32[np.ndarray, "on"]


class Lattice(NamedTuple):
    """Points in a permutohedral lattice of d dimensions, with e = d + 1 corners per point.

    size: m, the number of vertices; the first `first_half` of them are the corners of the first half of the points.
    corners: the vertices around each point. weights: their barycentric weights. axes: the e directions along which
    values are blurred.
    """

    size: int
    first_half: int

    corners: UInt32[np.ndarray, "n e"]
    weights: Float32[np.ndarray, "n e"]
    axes: tuple[Axis, ...]


Runner = Callable[..., None]
"""Calls `kernel(first, last, *arrays)`, given a kernel, a size and arrays, for ranges that together cover 0 to size
exactly once, and returns when all calls have finished."""


def build_lattices(
    features: Sequence[Float32[np.ndarray, "_n _d"]], run: Runner, threads: ThreadPoolExecutor
) -> list[Lattice]:
    """Return one lattice per array of points, whose features are in units of the Gaussian's standard deviation.

    Raises:
        ValueError: when the points span too many standard deviations.
    """
    embeddings = [embedding(points) for points in features]
    simplices = []
    for points, (scale, strides) in zip(features, embeddings, strict=True):
        n, e = len(points), len(strides)
        keys, weights = np.empty((n, e), np.uint64), np.empty((n, e), np.float32)
        run(find_simplices, n, points, scale, strides, keys, weights)
        simplices.append((keys, weights))
    # Vertices are numbered one after the other, so threads can share only whole lattices.
    numbered = threads.map(number_vertices, [keys for keys, _ in simplices])
    lattices = []
    for (_, weights), (_, strides), (corners, found, table) in zip(simplices, embeddings, numbered, strict=True):
        first_half = int(corners[: len(corners) // 2].max(initial=0)) + 1
        lattices.append(Lattice(len(found), first_half, corners, weights, find_axes(found, table, strides, run)))
    return lattices


def run_here(kernel: Callable[..., None], size: int, *arrays: object) -> None:
    """Run a kernel in this thread only (a `Runner`)."""
    kernel(0, size, *arrays)


def find_axes(
    found: UInt64[np.ndarray, "m"], table: Int32[np.ndarray, "t"], strides: Int64[np.ndarray, "e"], run: Runner
) -> tuple[Axis, ...]:
    """Return the lines of vertices along each axis of a lattice."""
    e, m = len(strides), len(found)
    starts, vertices, sizes = np.empty((e, m + 1), np.int64), np.empty((e, m), np.uint32), np.empty((e, 2), np.int64)
    after, before = np.empty((e, m), np.uint32), np.empty((e, m), np.bool_)
    run(find_lines, e, found, table, strides, after, before, starts, vertices, sizes)
    return tuple(Axis(starts[j, : sizes[j, 0] + 1], vertices[j, : sizes[j, 1]]) for j in range(e))


def embedding(features: Float32[np.ndarray, "n d"]) -> tuple[Float32[np.ndarray, "d"], Int64[np.ndarray, "e"]]:
    """Return the factors that scale the features to the lattice, and the strides that encode a vertex as one number.

    With the factors of Adams, Baek and Davis (2010), section 3.1, splatting, blurring and slicing together blur by one
    standard deviation. A vertex has d + 1 integer coordinates whose sum is zero, so the last one is redundant and its
    stride is 0. `sum(coordinate * stride)` is unique among the vertices of the points and their neighbours.

    Raises:
        ValueError: when the points span too many standard deviations for 64 bits.
    """
    d = features.shape[1]
    axes = np.arange(1, d + 1)
    scale = (math.sqrt(2 / 3) * (d + 1) / np.sqrt(axes * (axes + 1))).astype(np.float32)
    # One column at a time: a minimum over one axis of the whole array takes NumPy fifteen times as long.
    low, high = (np.array([float(side(column)) for column in features.T]) * scale for side in (np.min, np.max))
    strides = np.zeros(d + 1, np.int64)
    size = 1
    for i in range(d):
        # Coordinate i is the sum of the features from index i on, minus i times feature i - 1.
        spread = (high[i:] - low[i:]).sum() + (i * (high[i - 1] - low[i - 1]) if i else 0)
        strides[i] = size
        size *= math.ceil(spread) + 6 * (d + 1)
        if size >= 2**62:
            spans = ", ".join(f"{span:.4g}" for span in (high - low) / scale)
            raise ValueError(
                f"dense CRF: the image spans {spans} standard deviations in x, y and its colours, too many to number; "
                "use a smaller image or increase crf.gaussian-sxy, crf.bilateral-sxy or crf.bilateral-srgb"
            )
    return scale, strides


@jit
def find_simplices(
    first: int,
    last: int,
    features: Float32[np.ndarray, "n d"],
    scale: Float32[np.ndarray, "d"],
    strides: Int64[np.ndarray, "e"],
    keys: UInt64[np.ndarray, "n e"],
    weights: Float32[np.ndarray, "n e"],
) -> None:
    """Write the keys of the vertices around each point and their barycentric weights (Adams, Baek and Davis 2010,
    section 3.2).

    Rounding finds the nearest vertex whose coordinates are all multiples of d + 1; the order of the remainders
    determines which of the simplices around that vertex contains the point.
    """
    d = features.shape[1]
    place, near = np.empty(d + 1, np.float32), np.empty(d + 1, np.int64)
    rank, stride_of_rank = np.empty(d + 1, np.int64), np.empty(d + 1, np.int64)
    share = np.empty(d + 2, np.float32)
    inverse, every = np.float32(1) / np.float32(d + 1), strides.sum()
    for n in range(first, last):
        total = np.float32(0)
        for i in range(d, 0, -1):
            feature = features[n, i - 1] * scale[i - 1]
            place[i] = total - np.float32(i) * feature
            total += feature
        place[0] = total
        excess = 0
        for i in range(d + 1):
            rounded = math.floor(place[i] * inverse + np.float32(0.5))
            near[i] = rounded * (d + 1)
            place[i] -= np.float32(near[i])
            excess += rounded
            rank[i] = 0
        for i in range(d + 1):
            for j in range(i + 1, d + 1):
                rank[i] += place[i] < place[j]
                rank[j] += place[i] >= place[j]
        share[:] = 0
        key = 0
        for i in range(d + 1):
            # The coordinates must sum to zero: those that were rounded furthest move back one step.
            k = rank[i] + excess
            step = (k < 0) - (k > d)
            k += step * (d + 1)
            key += (near[i] + step * (d + 1)) * strides[i]
            stride_of_rank[k] = strides[i]
            rest = (place[i] - np.float32(step * (d + 1))) * inverse
            share[d - k] += rest
            share[d + 1 - k] -= rest
        share[0] += np.float32(1) + share[d + 1]
        for k in range(d + 1):
            keys[n, k] = np.uint64(key)
            weights[n, k] = share[k]
            # From one corner to the next, every coordinate increases by one, except one that decreases by d.
            key += every - (d + 1) * stride_of_rank[d - k]


def number_vertices(
    keys: UInt64[np.ndarray, "n e"],
) -> tuple[UInt32[np.ndarray, "n e"], UInt64[np.ndarray, "m"], Int32[np.ndarray, "t"]]:
    """Number the vertices in the order of the points, so that neighbours in the image are neighbours in memory.

    Returns the numbers of the points' corners, the keys of the vertices, and a hash table of the vertices' numbers
    (open addressing, -1 for a free slot, at most half full).
    """
    corners = np.empty(keys.shape, np.uint32)
    bits = 16
    found = np.empty(1 << bits, np.uint64)
    point = m = 0
    while True:
        table = np.full(2 << bits, -1, np.int32)
        fill_table(found[:m], table, 63 - bits)
        point, m = number_points(point, m, keys, corners, found, table, 63 - bits)
        if point == len(keys):
            return corners, found[:m].copy(), table
        bits += 1
        found = np.concatenate([found, np.empty_like(found)])


@jit
def fill_table(found: UInt64[np.ndarray, "m"], table: Int32[np.ndarray, "t"], shift: int) -> None:
    """Enter vertices into an empty hash table of 2^(64 - shift) slots."""
    mask = np.uint64(len(table) - 1)
    for v in range(len(found)):
        at = (found[v] * GOLDEN) >> np.uint64(shift)
        while table[at] >= 0:
            at = (at + np.uint64(1)) & mask
        table[at] = v


@jit
def number_points(
    first: int,
    m: int,
    keys: UInt64[np.ndarray, "n e"],
    corners: UInt32[np.ndarray, "n e"],
    found: UInt64[np.ndarray, "f"],
    table: Int32[np.ndarray, "t"],
    shift: int,
) -> tuple[int, int]:
    """Number the vertices of the points from `first` on until `found` is full; it already holds m vertices.

    Returns the point to continue with, and the number of vertices found so far.
    """
    mask = np.uint64(len(table) - 1)
    points, e = keys.shape
    for n in range(first, points):
        if m + e > len(found):
            return n, m
        for k in range(e):
            key = keys[n, k]
            if n > first and keys[n - 1, k] == key:  # most pixels are in the same simplex as their left neighbour
                corners[n, k] = corners[n - 1, k]
                continue
            at = (key * GOLDEN) >> np.uint64(shift)
            while table[at] >= 0 and found[table[at]] != key:
                at = (at + np.uint64(1)) & mask
            if table[at] < 0:
                table[at] = m
                found[m] = key
                m += 1
            corners[n, k] = table[at]
    return points, m


@jit
def find_lines(
    first: int,
    last: int,
    found: UInt64[np.ndarray, "m"],
    table: Int32[np.ndarray, "t"],
    strides: Int64[np.ndarray, "e"],
    after: UInt32[np.ndarray, "e m"],
    before: Bool[np.ndarray, "e m"],
    starts: Int64[np.ndarray, "e _starts"],
    vertices: UInt32[np.ndarray, "e m"],
    sizes: Int64[np.ndarray, "e 2"],
) -> None:
    """Write the lines of vertices along axes `first` to `last`, and the number of lines and of vertices on them.

    `after` is the next vertex along the axis: a step of d along it and of -1 along all others; m if there is none.
    `before` marks the vertices that have a previous one, and so do not start a line.
    """
    mask, m, e = np.uint64(len(table) - 1), len(found), len(strides)
    shift = np.uint64(64 - round(math.log2(len(table))))
    for j in range(first, last):
        step = np.uint64(e * strides[j] - strides.sum())
        before[j] = False
        for v in range(m):
            key = found[v] + step
            at = (key * GOLDEN) >> shift
            while table[at] >= 0 and found[table[at]] != key:
                at = (at + np.uint64(1)) & mask
            after[j, v] = m
            if table[at] >= 0:
                after[j, v] = table[at]
                before[j, table[at]] = True
        lines = on = 0
        for v in range(m):
            if before[j, v] or after[j, v] == m:
                continue
            starts[j, lines] = on
            lines += 1
            w = np.uint32(v)
            while w != m:
                vertices[j, on] = w
                on += 1
                w = after[j, w]
        starts[j, lines] = on
        sizes[j, 0], sizes[j, 1] = lines, on


SMALLEST = 1e-5
"""Smaller probabilities are raised to this value, so that no label is ruled out for good."""
