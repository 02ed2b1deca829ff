"""Images of one size go through the network together, and come out in the order they came in."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor

from tagseg.prediction.read import Read
from tagseg.segment.infer import ClassProbabilities

LOOK_AHEAD = 4
"""Batches of images that are read before one is chosen from them."""


def in_batches(
    images: Iterable[tuple[Read, Tensor | None]],
    look: Callable[[Sequence[Tensor]], list[ClassProbabilities]],
    batch: int,
    pixels: int,
) -> Iterator[tuple[Read, ClassProbabilities | None]]:
    """Yield images in their order with what `look` makes of their pictures (3 h w), None where there is no picture.

    `look` gets up to `batch` pictures of one size. They come from as many images as make a few batches of `pixels`
    pixels each at the most, so that large images do not fill the memory.
    """
    source = enumerate(images)
    waiting: dict[int, tuple[Read, Tensor | None]] = {}
    done: dict[int, tuple[Read, ClassProbabilities | None]] = {}
    due = 0
    while True:
        _fill(waiting, source, batch, pixels)
        if not waiting:
            return
        # The oldest that waits is the one that is due: no image waits for long.
        size = _size(waiting[due])
        chosen = [number for number, one in waiting.items() if _size(one) == size][:batch]
        group = [waiting.pop(number) for number in chosen]
        pictures = [picture for _, picture in group if picture is not None]
        seen = look(pictures) if pictures else [None] * len(group)
        done.update((number, (one[0], values)) for number, one, values in zip(chosen, group, seen, strict=True))
        while due in done:
            yield done.pop(due)
            due += 1


def _fill(
    waiting: dict[int, tuple[Read, Tensor | None]],
    source: Iterator[tuple[int, tuple[Read, Tensor | None]]],
    batch: int,
    pixels: int,
) -> None:
    images = LOOK_AHEAD * batch if batch > 1 else 1
    while len(waiting) < images and (not waiting or sum(map(_pixels, waiting.values())) < images * pixels):
        item = next(source, None)
        if item is None:
            return
        waiting[item[0]] = item[1]


def _size(image: tuple[Read, Tensor | None]) -> tuple[int, ...]:
    return () if image[1] is None else tuple(image[1].shape)


def _pixels(image: tuple[Read, Tensor | None]) -> int:
    return 0 if image[1] is None else image[1].shape[1] * image[1].shape[2]
