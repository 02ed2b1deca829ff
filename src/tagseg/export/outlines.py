"""Outlines of a connected region, including its holes, as polygons: exact, or simplified within a tolerance."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

Ring = Int64[np.ndarray, "_n 2"]
"""Corners (x, y) of a closed line; the last one connects to the first."""


def polygon(
    pixels: Bool[np.ndarray, "h w"], tolerance: float = 0.0, along: Literal["edges", "centres"] = "edges"
) -> Float64[np.ndarray, "_n 2"]:
    """Return the outline of one connected region as a single closed polygon of (x, y), in pixels.

    Along `edges`, pixel (x, y) is the square from x to x + 1 and y to y + 1, as in COCO: the polygon encloses its
    pixels. Along `centres`, pixel (x, y) is the point (x, y), and the polygon passes through the outermost pixels of
    the region, as OpenCV's fillPoly expects. A line there and back (a keyhole) joins each hole to the outline; by the
    even-odd rule the holes stay empty.

    No point of an outline moves by more than `tolerance` pixels (Douglas and Peucker 1973); 0 keeps it exact.
    """
    rings = outlines(pixels)
    if along == "centres":
        rings = [_through_pixels(ring) for ring in rings]
    outer, *holes = [simplify(ring, tolerance) for ring in rings]
    return keyhole(outer, holes)


def outlines(pixels: Bool[np.ndarray, "h w"]) -> list[Ring]:
    """Return the outline of a region and then its holes, along pixel edges, with the region to the right of each line.

    The region is connected by pixels that touch at edges or corners.
    """
    starts, stops, heading = _edges(pixels)
    follow = {(x, y, d): i for i, ((x, y), d) in enumerate(zip(starts.tolist(), heading.tolist(), strict=True))}
    ends, directions = stops.tolist(), heading.tolist()
    walked = [False] * len(ends)
    rings = []
    for first in range(len(ends)):
        edge, ring = first, []
        while not walked[edge]:
            walked[edge] = True
            ring.append(edge)
            (x, y), d = ends[edge], directions[edge]
            # Where two pixels touch only at a corner, turning left continues around the other one.
            edge = follow.get((x, y, (d + 3) % 4), follow.get((x, y, (d + 1) % 4), -1))
        if ring:
            assert edge == first, "an outline that does not close"
            rings.append(starts[ring])
    rings.sort(key=_area, reverse=True)
    return rings


def simplify(ring: Ring, tolerance: float) -> Ring:
    """Return a closed line with as few corners as keep it within `tolerance` pixels (Douglas and Peucker 1973).

    It is returned unchanged if fewer than three corners would remain.
    """
    ring = ring[_turns(ring)]
    if len(ring) < 3 or tolerance == 0:
        return ring
    far = int(np.square(ring - ring[0]).sum(1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far]] = True
    todo = [(0, far), (far, len(ring))]
    while todo:
        start, stop = todo.pop()
        if stop - start < 2:
            continue
        distance = _to_segment(closed[start + 1 : stop], closed[start], closed[stop])
        if distance.max() > tolerance + 1e-9:
            middle = start + 1 + int(distance.argmax())
            keep[middle] = True
            todo += [(start, middle), (middle, stop)]
    kept = ring[keep[:-1]]
    return kept if len(kept) > 2 else ring


def _turns(ring: Ring) -> Bool[np.ndarray, " _n"]:
    """Tell which points of a closed line are corners; the others lie straight between their neighbours."""
    came, goes = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    straight = (came[:, 0] * goes[:, 1] == came[:, 1] * goes[:, 0]) & ((came * goes).sum(1) > 0)
    turns: Bool[np.ndarray, " _n"] = ~straight
    return turns


def keyhole(outer: Ring, holes: list[Ring]) -> Float64[np.ndarray, "_n 2"]:
    """Return an outline and its holes as one closed line.

    From the topmost corner of each hole, a line goes straight up to the first line it meets, and back. If the outlines
    are exact, it crosses only pixels of the region.
    """
    line = outer.astype(np.float64)
    # From top to bottom, so that everything above a hole has already been joined.
    for hole in sorted(holes, key=_topmost):
        y, x = _topmost(hole)
        begin = int(np.flatnonzero((hole == (x, y)).all(1))[0])
        around = np.roll(hole, -begin, axis=0).astype(np.float64)
        at, height = _above(line, float(x), float(y))
        meeting = np.array([[x, height]], np.float64)
        line = np.concatenate([line[: at + 1], meeting, around, around[:1], meeting, line[at + 1 :]])
    return line


def _edges(pixels: Bool[np.ndarray, "h w"]) -> tuple[Ring, Ring, Int64[np.ndarray, " _n"]]:
    """Return starts, stops and headings of all straight lines along a region's border, with the region to their right.

    Headings are 0 east, 1 south, 2 west, 3 north: the next number is a right turn.
    """
    padded = np.pad(pixels, 1)
    inside, above = padded[1:, 1:-1], padded[:-1, 1:-1]
    right, before = padded[1:-1, 1:], padded[1:-1, :-1]
    starts, stops, headings = [], [], []
    # One row of flags per grid line: first for lines along rows, then for lines along columns.
    for heading, flags in (
        (0, inside & ~above),
        (2, above & ~inside),
        (1, (before & ~right).T),
        (3, (right & ~before).T),
    ):
        steps = np.diff(np.pad(flags, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        row, begin = np.nonzero(steps == 1)
        end = np.nonzero(steps == -1)[1]
        first, last = (begin, end) if heading < 2 else (end, begin)
        along = heading % 2 == 0
        starts.append(np.stack([first, row] if along else [row, first], 1))
        stops.append(np.stack([last, row] if along else [row, last], 1))
        headings.append(np.full(len(row), heading))
    return np.concatenate(starts), np.concatenate(stops), np.concatenate(headings)


def _through_pixels(ring: Ring) -> Ring:
    """Return the line through a region's outermost pixels, given the line along their edges."""
    following = np.roll(ring, -1, axis=0)
    step = np.sign(following - ring)
    # Pixels to the right of the first and the last step of each straight line. A pixel has the coordinates of its
    # corner with the smallest x and y, so a step to the west or north starts one pixel further.
    right = np.stack([-step[:, 1], step[:, 0]], 1)
    offset = np.minimum(step, 0) + np.minimum(right, 0)
    first, last = ring + offset, following - step + offset
    points = np.stack([first, last], 1).reshape(-1, 2)
    new = (points != np.roll(points, 1, axis=0)).any(1)
    return points[new] if new.any() else points[:1]


def _to_segment(
    points: Int64[np.ndarray, "n 2"], start: Int64[np.ndarray, "2"], stop: Int64[np.ndarray, "2"]
) -> Float64[np.ndarray, " n"]:
    """Return the distances of points from the segment between two other points."""
    along, away = (stop - start).astype(np.float64), (points - start).astype(np.float64)
    length = float(along @ along)
    share = np.clip(away @ along / length, 0, 1) if length else np.zeros(len(points))
    distance: Float64[np.ndarray, " n"] = np.hypot(*(away - share[:, None] * along).T)
    return distance


def _area(ring: Ring) -> float:
    """Return twice the signed area: positive if the region is inside the line."""
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def _topmost(ring: Ring) -> tuple[int, int]:
    """Return (y, x) of the highest corner; of several, the leftmost."""
    x, y = ring[np.lexsort(ring.T)[0]]
    return int(y), int(x)


def _above(line: Float64[np.ndarray, "_n 2"], x: float, y: float) -> tuple[int, float]:
    """Return the index of the segment of a closed line next above (x, y), or through it, and its y there."""
    one, two = line, np.roll(line, -1, axis=0)
    low, high = np.minimum(one[:, 0], two[:, 0]), np.maximum(one[:, 0], two[:, 0])
    upright = low == high
    share = np.where(upright, 0.0, (x - one[:, 0]) / np.where(upright, 1.0, two[:, 0] - one[:, 0]))
    height = one[:, 1] + share * (two[:, 1] - one[:, 1])
    # A vertical segment is met at its lower end, or at y if it extends below.
    height = np.where(upright, np.minimum(np.maximum(one[:, 1], two[:, 1]), y), height)
    height = np.where(upright & (np.minimum(one[:, 1], two[:, 1]) > y), np.inf, height)
    met = (low <= x) & (x <= high) & (height <= y + 1e-9)
    # A simplified outline may leave a hole's corner outside; then any segment will do, within the tolerance.
    at = int(np.where(met, height, -np.inf).argmax()) if met.any() else int(np.hypot(*(one - (x, y)).T).argmin())
    return at, float(height[at]) if met.any() else float(one[at, 1])
