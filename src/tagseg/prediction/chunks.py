"""Shares of the images, whose pictures go through the network together and with no others.

So what an image's prediction is, to the last bit, depends on its share alone: not on the engine, nor on how often a
worker or the whole prediction was killed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tagseg.prediction.find_images import Location
from tagseg.segment.resolution import Resolution

BATCHES = 16
"""Batches of images in a share: so many, that images of several sizes still fill batches, and a share is worth being
sent to another process."""


@dataclass(frozen=True)
class Chunk:
    """Images by name, and which of them something is to be written for."""

    images: dict[str, Location]
    wanted: frozenset[str]


def chunk_size(batch: int, resolution: Resolution, max_megapixels: float) -> int:
    """Return how many images a share has: fewer where pictures may be large, so that it always fits into memory."""
    largest = resolution.max_side**2 if resolution.max_side else max_megapixels * 1e6
    return batch * max(int(BATCHES * min(resolution.window**2 / largest, 1.0)), 1)


def chunk_pixels(batch: int, resolution: Resolution) -> int:
    """Return how many pixels the pictures of a share have together, but for pictures that are larger by themselves."""
    return batch * BATCHES * resolution.window**2


def cut_chunks(found: dict[str, Location], todo: Iterable[str], size: int, batch: int) -> list[Chunk]:
    """Return shares of `size` images that hold all of `todo`, in the order of the images.

    With batches of one image a share has nothing else. With larger ones shares are cut from all images that were found,
    and the neighbours of an image go through the network with it even where they are done.
    """
    wanted = frozenset(todo)
    names = [name for name in found if batch > 1 or name in wanted]
    parts = (names[first : first + size] for first in range(0, len(names), size))
    return [
        Chunk({name: found[name] for name in part}, wanted.intersection(part))
        for part in parts
        if not wanted.isdisjoint(part)
    ]
