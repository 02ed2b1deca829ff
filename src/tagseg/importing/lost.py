"""What a tool lost: holes that are filled and thin parts that are gone, compared with the run's own masks."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from tagseg.data.records import VOID
from tagseg.export.regions import regions


@dataclass(frozen=True)
class Lost:
    """How many holes there were and how many are filled; how many parts of one pixel's width, and how many are gone."""

    holes: int = 0
    filled: int = 0
    thin: int = 0
    gone: int = 0

    def __add__(self, other: "Lost") -> "Lost":
        return Lost(
            self.holes + other.holes, self.filled + other.filled, self.thin + other.thin, self.gone + other.gone
        )

    def text(self) -> str:
        """Return what most masks lost, empty if they did not: a person fills a hole, but not most of them."""
        found = []
        if self.filled > self.holes / 2:
            found.append(f"{self.filled} of {self.holes} holes are filled")
        if self.gone > self.thin / 2:
            found.append(f"{self.gone} of {self.thin} parts of one pixel's width are gone")
        return " and ".join(found)


def count_lost(before: UInt8[np.ndarray, "h w"], after: UInt8[np.ndarray, "h w"]) -> Lost:
    """Return what of the mask `before` is lost in the mask `after` of the same size.

    >>> ring = np.pad(np.array([[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]], np.uint8), 1)
    >>> count_lost(ring, np.pad(np.ones((3, 4), np.uint8), 1))
    Lost(holes=1, filled=1, thin=0, gone=0)
    """
    total = Lost()
    for region in regions(before):
        if region.class_id == VOID:
            continue
        kept, possible = after == region.class_id, (after == region.class_id) | (after == VOID)
        outside = (before != region.class_id).astype(np.uint8)
        for around in regions(outside):
            for part in around.parts(corners=False):
                left, top, width, height = part.box()
                if left and top and left + width < before.shape[1] and top + height < before.shape[0]:
                    total += Lost(holes=1, filled=int(bool(kept[part.mask()].all())))
        for part in region.parts():
            if not _has_square(part.pixels()):
                total += Lost(thin=1, gone=int(not possible[part.mask()].any()))
    return total


def _has_square(pixels: Bool[np.ndarray, "h w"]) -> bool:
    """Tell whether four pixels of a part are a square."""
    return bool((pixels[1:, 1:] & pixels[1:, :-1] & pixels[:-1, 1:] & pixels[:-1, :-1]).any())
