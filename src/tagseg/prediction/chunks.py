"""Chunks of images that go through the network together, and with no other images.

The batches within a chunk depend only on the chunk. An image's prediction is therefore the same to the last bit with
either engine, and no matter how often a worker or the whole prediction was killed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tagseg.prediction.find_images import Location
from tagseg.segment.resolution import Resolution

BATCHES_PER_CHUNK = 16
"""Batches of images in a chunk: enough to fill batches from images of several sizes, and to make sending a chunk to
another process worthwhile."""


@dataclass(frozen=True)
class Chunk:
    """Images by name, and the names of those whose outputs are wanted."""

    images: dict[str, Location]
    wanted: frozenset[str]


def chunk_size(batch: int, resolution: Resolution, max_megapixels: float) -> int:
    """Return the number of images in a chunk: fewer if pictures may be large, so that a chunk always fits into
    memory."""
    largest = resolution.max_side**2 if resolution.max_side else max_megapixels * 1e6
    return batch * max(int(BATCHES_PER_CHUNK * min(resolution.window**2 / largest, 1.0)), 1)


def chunk_pixels(batch: int, resolution: Resolution) -> int:
    """Return the number of pixels of a chunk's pictures together, unless a single picture is larger than that."""
    return batch * BATCHES_PER_CHUNK * resolution.window**2


def cut_chunks(found: dict[str, Location], todo: Iterable[str], size: int, batch: int) -> list[Chunk]:
    """Return chunks of `size` images that contain all images in `todo`, in the order of `found`.

    With a batch of one image, chunks contain only the images in `todo`. With larger batches, chunks are cut from all of
    `found`, and an image goes through the network with the same neighbours even if these are already done.
    """
    wanted = frozenset(todo)
    names = [name for name in found if batch > 1 or name in wanted]
    parts = (names[first : first + size] for first in range(0, len(names), size))
    return [
        Chunk({name: found[name] for name in part}, wanted.intersection(part))
        for part in parts
        if not wanted.isdisjoint(part)
    ]
