"""From class probabilities to a mask at the image's own size, a strip of rows at a time."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from tagseg.masks.resize import at_size, refined_size, strips
from tagseg.settings.crf import CrfSettings
from tagseg.settings.masks import MaskSettings


@dataclass(frozen=True)
class Candidates:
    """The ids that the pixels of an image can have, and two arrays for these ids alone (`l y x`): the scores that
    decide, and the network's probabilities. They are the same array unless the dense CRF has refined the scores."""

    ids: tuple[int, ...]
    scores: Float32[np.ndarray, "l y x"]
    probabilities: Float32[np.ndarray, "l y x"]


@dataclass(frozen=True)
class Decided:
    """An image's mask; for every id its share of the pixels, and the network's mean probability of the id on these
    pixels (both 0 for an id without pixels)."""

    mask: UInt8[np.ndarray, "H W"]
    area: tuple[float, ...]
    confidence: tuple[float, ...]


def all_candidates(probabilities: Float32[np.ndarray, "ids y x"]) -> Candidates:
    """Return all ids as candidates."""
    return Candidates(tuple(range(len(probabilities))), probabilities, probabilities)


def likely_candidates(probabilities: Float32[np.ndarray, "ids y x"]) -> Candidates:
    """Return the ids that are at least as likely as chance somewhere.

    No other id can be the likeliest of a pixel, not even between cells, where probabilities are weighted means of the
    cells' probabilities.
    """
    ids = np.flatnonzero(probabilities.max((1, 2)) >= 0.999 / len(probabilities))
    likely = probabilities if len(ids) == len(probabilities) else probabilities[ids]
    return Candidates(tuple(ids.tolist()), likely, likely)


def refine(
    probabilities: Float32[np.ndarray, "ids y x"], image: Image.Image, size: tuple[int, int], crf: CrfSettings
) -> Candidates:
    """Return candidates with scores that the dense CRF has aligned with the edges of the image.

    As for pseudo-masks, this happens at up to 640 pixels of the long side. Ids that are the likeliest nowhere are left
    out. `size` is the image's (height, width); `image` itself may be smaller.

    Raises:
        ValueError: if the dense CRF cannot run with the settings in `crf`.
    """
    from tagseg.crf.dense_crf import dense_crf  # Numba takes a second to import

    small = refined_size(size, MaskSettings())
    large = np.concatenate([strip for _, strip in strips(probabilities, small)], axis=1)
    ids = np.unique(large.argmax(0))
    if len(ids) == 1:
        return likely_candidates(probabilities)
    likely = np.ascontiguousarray(large[ids])
    pixels = np.asarray(image.resize(small[::-1], Image.Resampling.BILINEAR))
    return Candidates(tuple(ids.tolist()), dense_crf(likely, pixels, at_size(crf, small), threads=1), likely)


def label_pixels(candidates: Candidates, size: tuple[int, int], ids: int) -> Decided:
    """Return the mask of (height, width) `size` in which each pixel has the candidate with the highest score; `ids` is
    the number of all ids."""
    count, refined = len(candidates.ids), candidates.scores is not candidates.probabilities
    values = np.concatenate([candidates.scores, candidates.probabilities]) if refined else candidates.probabilities
    id_of = np.array(candidates.ids, np.uint8)
    mask = np.empty(size, np.uint8)
    pixels, sums = np.zeros(count, np.int64), np.zeros(count)
    for rows, strip in strips(values, size):
        best = strip[:count].argmax(0)
        mask[rows] = id_of[best]
        confidence = np.take_along_axis(strip[-count:], best[None], 0)[0]
        pixels += np.bincount(best.ravel(), minlength=count)
        sums += np.bincount(best.ravel(), confidence.ravel(), minlength=count)
    area, mean = np.zeros(ids), np.zeros(ids)
    area[list(candidates.ids)] = pixels / mask.size
    mean[list(candidates.ids)] = sums / np.maximum(pixels, 1)
    return Decided(mask, tuple(area.tolist()), tuple(mean.tolist()))
