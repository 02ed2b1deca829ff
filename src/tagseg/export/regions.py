"""The regions of a mask as runs of pixels down its columns, for COCO's run-length codes and for connected parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from pycocotools import mask as coco_rle


@dataclass(frozen=True)
class Region:
    """The pixels of one class in a mask of `size` (height, width), or a connected part of them.

    Run i covers the pixels from `starts[i]` to `stops[i]` (exclusive), counted down the columns from left to right; no
    run crosses the end of a column.
    """

    class_id: int
    size: tuple[int, int]
    starts: Int64[np.ndarray, " n"]
    stops: Int64[np.ndarray, " n"]

    def area(self) -> int:
        """Return the number of pixels."""
        return int((self.stops - self.starts).sum())

    def box(self) -> tuple[int, int, int, int]:
        """Return left, top, width and height of the smallest box around the pixels, in pixels."""
        height = self.size[0]
        left, right = int(self.starts[0]) // height, int(self.starts[-1]) // height
        top, bottom = int((self.starts % height).min()), int(((self.stops - 1) % height).max())
        return left, top, right - left + 1, bottom - top + 1

    def pixels(self) -> Bool[np.ndarray, "h w"]:
        """Return the pixels within the region's box."""
        left, top, width, height = self.box()
        column, row = np.divmod(self.starts, self.size[0])
        begins = (column - left) * height + row - top
        change = np.zeros(width * height + 1, np.int32)
        # A run may start where the run in the previous column ended; `add.at` counts both.
        np.add.at(change, begins, 1)
        np.add.at(change, begins + self.stops - self.starts, -1)
        return np.cumsum(change[:-1]).astype(bool).reshape(width, height).T

    def code(self) -> dict[str, Any]:
        """Return the region as COCO's compressed run-length code, a JSON object."""
        joined = self.starts[1:] == self.stops[:-1]
        begins, ends = self.starts[np.r_[True, ~joined]], self.stops[np.r_[~joined, True]]
        height, width = self.size
        bounds = np.stack([begins, ends], 1).ravel()
        counts = np.diff(np.r_[0, bounds, height * width] if bounds[-1] < height * width else np.r_[0, bounds])
        code = coco_rle.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        return {"size": [height, width], "counts": code["counts"].decode("ascii")}

    def parts(self) -> Iterator["Region"]:
        """Yield the connected parts in the order of their first pixels; pixels connect at edges and corners."""
        part = self._part_of_runs()
        order = np.argsort(part, kind="stable")
        for runs in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            yield Region(self.class_id, self.size, self.starts[runs], self.stops[runs])

    def _part_of_runs(self) -> Int64[np.ndarray, " n"]:
        """Return the part of each run, numbered by the part's first run."""
        height, column = self.size[0], self.starts // self.size[0]
        # The runs of the next column that touch this one: from the first that ends at or below its start, to the last
        # that starts at or above its end.
        first = np.maximum(
            np.searchsorted(self.stops, self.starts + height), np.searchsorted(column, column + 1, "left")
        )
        last = np.minimum(
            np.searchsorted(self.starts, self.stops + height, "right"), np.searchsorted(column, column + 1, "right")
        )
        part = list(range(len(column)))
        for run in range(len(part)):
            for other in range(int(first[run]), int(last[run])):
                one, two = sorted((_root(part, run), _root(part, other)))
                part[two] = one
        return np.array([_root(part, run) for run in range(len(part))], np.int64)


def regions(mask: UInt8[np.ndarray, "h w"]) -> Iterator[Region]:
    """Yield the region of every id in a mask except 0, in ascending order, including 255."""
    height, width = mask.shape
    down = mask.T.ravel()
    change = np.flatnonzero(down[1:] != down[:-1]) + 1
    starts = np.union1d(change, np.arange(0, height * width, height)).astype(np.int64)
    stops = np.r_[starts[1:], height * width]
    values = down[starts]
    for value in np.unique(values[values > 0]):
        chosen = values == value
        yield Region(int(value), (height, width), starts[chosen], stops[chosen])


def _root(part: list[int], run: int) -> int:
    while part[run] != run:
        part[run] = part[part[run]]
        run = part[run]
    return run
