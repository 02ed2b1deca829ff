"""The local engine: threads of this process read images and decide masks while the network is at work."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from tagseg.prediction.batches import in_batches
from tagseg.prediction.chunks import Chunk, chunk_size, cut_chunks
from tagseg.prediction.find_images import Location
from tagseg.prediction.outputs import Outcome, finish_image, needed
from tagseg.prediction.read import Read, read_picture
from tagseg.segment.infer import ClassProbabilities, as_tensor
from tagseg.settings.predict import PredictOptions
from tagseg.system.process import cores
from tagseg.system.progress import map_ahead

if TYPE_CHECKING:
    from tagseg.segment.predictor import Predictor

THREADS = min(cores(), 4)
"""Threads that read images, and as many that decide and write masks, while the network is at work. Each may hold a
whole image."""


def local_outcomes(
    predictor: "Predictor", found: dict[str, Location], todo: Sequence[str], options: PredictOptions
) -> Iterator[Outcome]:
    """Yield what the images in `todo` come to, in their order."""
    size = chunk_size(predictor.batch, predictor.resolution, options.max_megapixels)
    shares = cut_chunks(found, todo, size, predictor.batch)

    def read(item: tuple[str, Location]) -> tuple[Read, Tensor | None]:
        one, picture = read_picture(*item, predictor.resolution, options.max_megapixels)
        return one, None if picture is None else as_tensor(picture)

    def end(pair: tuple[Read, ClassProbabilities | None]) -> Outcome:
        one, seen = pair
        return finish_image(one, None if seen is None else needed(seen, options), predictor.classes, options)

    pictures = map_ahead((item for share in shares for item in share.images.items()), read, THREADS)
    seen = (pair for share in shares for pair in seen_of(share, pictures, predictor))
    return map_ahead(seen, end, THREADS)


def seen_of(
    share: Chunk, pictures: Iterator[tuple[Read, Tensor | None]], predictor: "Predictor"
) -> Iterator[tuple[Read, ClassProbabilities | None]]:
    """Yield the images that are wanted of a share, with their probabilities; `pictures` begins with the share's."""
    own = itertools.islice(pictures, len(share.images))
    for one, seen in in_batches(own, predictor.look, predictor.batch, predictor.window**2):
        if one.name in share.wanted:
            yield one, seen
