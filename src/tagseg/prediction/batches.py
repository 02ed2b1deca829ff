"""Send images of one size through the network together, and return results in the order of the images."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from tagseg.prediction.chunks import Chunk
from tagseg.prediction.read import InputImage
from tagseg.segment.predictor import Predictor
from tagseg.segment.windows import ClassProbabilities

Pixels8 = UInt8[np.ndarray, "_ _ 3"]

BATCHES_AHEAD = 4
"""Batches of images that are read before one batch is chosen from them."""


def chunk_probabilities(
    chunk: Chunk, pictures: Iterator[tuple[InputImage, Pixels8 | None]], predictor: Predictor
) -> Iterator[tuple[InputImage, ClassProbabilities | None]]:
    """Yield the wanted images of a chunk with their class probabilities (None if an image could not be read).

    Takes the pictures of the chunk, and no more, from `pictures`.
    """
    own = itertools.islice(pictures, len(chunk.images))
    for image, found in batched_probabilities(own, predictor.look, predictor.batch, predictor.window**2):
        if image.name in chunk.wanted:
            yield image, found


def batched_probabilities(
    images: Iterable[tuple[InputImage, Pixels8 | None]],
    network: Callable[[Sequence[Pixels8]], list[ClassProbabilities]],
    batch: int,
    pixels: int,
) -> Iterator[tuple[InputImage, ClassProbabilities | None]]:
    """Yield images in their order with the class probabilities of their pictures (h w 3), None without a picture.

    `network` gets up to `batch` pictures of one size. They are chosen from the next images, at most `BATCHES_AHEAD`
    batches of `pixels` pixels per picture, so that large images do not fill the memory.
    """
    source = enumerate(images)
    waiting: dict[int, tuple[InputImage, Pixels8 | None]] = {}
    done: dict[int, tuple[InputImage, ClassProbabilities | None]] = {}
    due = 0
    while True:
        _read_ahead(waiting, source, batch, pixels)
        if not waiting:
            return
        # The image that is due is the oldest one waiting, and it goes first: no image waits for long.
        size = _size(waiting[due])
        chosen = [number for number, one in waiting.items() if _size(one) == size][:batch]
        group = [waiting.pop(number) for number in chosen]
        pictures = [picture for _, picture in group if picture is not None]
        found = network(pictures) if pictures else [None] * len(group)
        done.update((number, (image, values)) for number, (image, _), values in zip(chosen, group, found, strict=True))
        while due in done:
            yield done.pop(due)
            due += 1


def _read_ahead(
    waiting: dict[int, tuple[InputImage, Pixels8 | None]],
    source: Iterator[tuple[int, tuple[InputImage, Pixels8 | None]]],
    batch: int,
    pixels: int,
) -> None:
    images = BATCHES_AHEAD * batch if batch > 1 else 1
    while len(waiting) < images and (not waiting or sum(map(_pixels, waiting.values())) < images * pixels):
        item = next(source, None)
        if item is None:
            return
        waiting[item[0]] = item[1]


def _size(image: tuple[InputImage, Pixels8 | None]) -> tuple[int, ...]:
    return () if image[1] is None else tuple(image[1].shape)


def _pixels(image: tuple[InputImage, Pixels8 | None]) -> int:
    return 0 if image[1] is None else image[1].shape[0] * image[1].shape[1]
