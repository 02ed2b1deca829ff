"""The local engine: threads of this process read images and make masks while the network computes."""

import dataclasses
from collections.abc import Iterator, Sequence

from tagseg.prediction.batches import Pixels8, chunk_probabilities
from tagseg.prediction.chunks import chunk_size, cut_chunks
from tagseg.prediction.find_images import Location
from tagseg.prediction.finish import finish_image, needed_candidates
from tagseg.prediction.outputs import Outcome
from tagseg.prediction.plan import Plan
from tagseg.prediction.read import InputImage, read_input
from tagseg.segment.predictor import Predictor
from tagseg.segment.windows import ClassProbabilities
from tagseg.system.process import cores
from tagseg.system.progress import map_ahead

IMAGE_THREADS = min(cores(), 4)
"""Threads that read images while the network computes, and as many that make masks and write them. Each may hold a
whole image."""


def local_outcomes(
    predictor: Predictor, found: dict[str, Location], todo: Sequence[str], plan: Plan
) -> Iterator[Outcome]:
    """Yield the outcomes of the images in `todo`, in their order."""
    if predictor.is_graph:
        return _graph_outcomes(predictor, found, todo, plan)
    size = chunk_size(predictor.batch, plan.resolution, plan.max_megapixels)
    chunks = cut_chunks(found, todo, size, predictor.batch)

    def read(item: tuple[str, Location]) -> tuple[InputImage, Pixels8 | None]:
        return read_input(*item, plan.resolution, plan.max_megapixels)

    def finish(predicted: tuple[InputImage, ClassProbabilities | None]) -> Outcome:
        image, probabilities = predicted
        candidates = None if probabilities is None else needed_candidates(probabilities, plan)
        return finish_image(image, candidates, plan)

    pictures = map_ahead((item for chunk in chunks for item in chunk.images.items()), read, IMAGE_THREADS)
    predicted = (pair for chunk in chunks for pair in chunk_probabilities(chunk, pictures, predictor))
    return map_ahead(predicted, finish, IMAGE_THREADS)


def _graph_outcomes(
    predictor: Predictor, found: dict[str, Location], todo: Sequence[str], plan: Plan
) -> Iterator[Outcome]:
    """Yield the outcomes: one thread per core takes an image all the way, so that decoding, network, CRF and encoding
    overlap, and nothing is copied between threads."""
    threads = max(min(predictor.threads, len(todo)), 1)
    # With fewer images than threads, the views and windows of an image share them.
    alone = dataclasses.replace(predictor, threads=max(predictor.threads // threads, 1))

    def whole(name: str) -> Outcome:
        image, picture = read_input(name, found[name], plan.resolution, plan.max_megapixels)
        if picture is None:
            return finish_image(image, None, plan)
        return finish_image(image, needed_candidates(alone.look([picture])[0], plan), plan)

    return map_ahead(todo, whole, threads)
