"""The local engine: threads of this process read images and make masks while the network computes."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from tagseg.prediction.batches import chunk_probabilities
from tagseg.prediction.chunks import chunk_size, cut_chunks
from tagseg.prediction.find_images import Location
from tagseg.prediction.finish import finish_image, needed_candidates
from tagseg.prediction.outputs import Outcome
from tagseg.prediction.plan import Plan
from tagseg.prediction.read import InputImage, read_input
from tagseg.segment.infer import ClassProbabilities, as_tensor
from tagseg.segment.predictor import Predictor
from tagseg.system.process import cores
from tagseg.system.progress import map_ahead

IMAGE_THREADS = min(cores(), 4)
"""Threads that read images while the network computes, and as many that make masks and write them. Each may hold a
whole image."""


def local_outcomes(
    predictor: Predictor, found: dict[str, Location], todo: Sequence[str], plan: Plan
) -> Iterator[Outcome]:
    """Yield the outcomes of the images in `todo`, in their order."""
    size = chunk_size(predictor.batch, plan.resolution, plan.max_megapixels)
    chunks = cut_chunks(found, todo, size, predictor.batch)

    def read(item: tuple[str, Location]) -> tuple[InputImage, Tensor | None]:
        image, picture = read_input(*item, plan.resolution, plan.max_megapixels)
        return image, None if picture is None else as_tensor(picture)

    def finish(predicted: tuple[InputImage, ClassProbabilities | None]) -> Outcome:
        image, probabilities = predicted
        candidates = None if probabilities is None else needed_candidates(probabilities, plan)
        return finish_image(image, candidates, plan)

    pictures = map_ahead((item for chunk in chunks for item in chunk.images.items()), read, IMAGE_THREADS)
    predicted = (pair for chunk in chunks for pair in chunk_probabilities(chunk, pictures, predictor))
    return map_ahead(predicted, finish, IMAGE_THREADS)
