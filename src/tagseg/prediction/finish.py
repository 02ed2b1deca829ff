"""The last step for an image: from its class probabilities to the contents of its files."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from tagseg.errors import DataError
from tagseg.masks.mask_files import mask_file, mask_png
from tagseg.prediction.lines import PredictionLine, image_line
from tagseg.prediction.outputs import Outcome, overlay_file, overlay_jpeg, probabilities_file, probabilities_npy
from tagseg.prediction.plan import Plan
from tagseg.prediction.read import InputImage, open_image
from tagseg.segment.label_pixels import Candidates, all_candidates, label_pixels, likely_candidates, refine


def needed_candidates(probabilities: Float32[np.ndarray, "ids y x"], plan: Plan) -> Candidates:
    """Return the part of an image's probabilities that `finish_image` needs.

    These are the probabilities of all classes if the dense CRF refines the mask or if they are written; otherwise of
    the few classes that can be the likeliest somewhere.
    """
    return all_candidates(probabilities) if plan.needs_all_probabilities else likely_candidates(probabilities)


def finish_image(image: InputImage, candidates: Candidates | None, plan: Plan) -> Outcome:
    """Return what is to be written for an image.

    `candidates` comes from `needed_candidates`; it is None if the image could not be read.
    """
    if candidates is None:
        return Outcome(image.name, PredictionLine(str(image.location), error=image.error))
    try:
        # Read again if it is needed: whole images would fill the memory while they wait for the network.
        rgb = open_image(image.location, plan.max_megapixels) if plan.overlays or plan.crf else None
    except DataError as error:
        return Outcome(image.name, PredictionLine(str(image.location), error=str(error)))
    probabilities = candidates.probabilities
    if plan.crf:
        assert rgb is not None, "the dense CRF needs the image"
        candidates = refine(probabilities, rgb, image.size, plan.crf)
    elif plan.needs_all_probabilities:
        candidates = likely_candidates(probabilities)
    decided = label_pixels(candidates, image.size, len(plan.classes))
    base = Path()
    mask = mask_file(base, image.name).as_posix()
    files = {mask: mask_png(decided.mask)}
    if rgb is not None and plan.overlays:
        files[overlay_file(base, image.name).as_posix()] = overlay_jpeg(rgb, decided.mask)
    if plan.probabilities:
        files[probabilities_file(base, image.name).as_posix()] = probabilities_npy(probabilities)
    return Outcome(image.name, image_line(image.location, mask, decided, plan.classes), files)
