"""From class probabilities to a mask at the image's own size, a strip of rows at a time, with what it shows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from tagseg.crf.dense_crf import dense_crf
from tagseg.masks.resize import at_size, refined_size, strips
from tagseg.settings.crf import CrfSettings
from tagseg.settings.masks import MaskSettings


@dataclass(frozen=True)
class Labels:
    """Probabilities (`l y x`) of the ids that can be an image's: those that decide, and the network's own, which differ
    where the dense CRF has refined them."""

    ids: tuple[int, ...]
    decisive: Float32[np.ndarray, "l y x"]
    network: Float32[np.ndarray, "l y x"]


@dataclass(frozen=True)
class Decided:
    """An image's mask; for every id its share of the pixels, and the network's mean probability of it there (both 0
    where it has none)."""

    mask: UInt8[np.ndarray, "H W"]
    area: tuple[float, ...]
    confidence: tuple[float, ...]


def candidates(seen: Float32[np.ndarray, "ids y x"]) -> Labels:
    """Return the ids that are somewhere as likely as chance: no other can be a pixel's likeliest, not between cells
    either, where probabilities are weighted means of those of the cells."""
    ids = np.flatnonzero(seen.max((1, 2)) >= 0.999 / len(seen))
    likely = seen if len(ids) == len(seen) else seen[ids]
    return Labels(tuple(ids.tolist()), likely, likely)


def refine(seen: Float32[np.ndarray, "ids y x"], image: Image.Image, size: tuple[int, int], crf: CrfSettings) -> Labels:
    """Return the probabilities refined by the dense CRF along the edges of the image, which has (height, width) `size`
    or comes smaller.

    As for pseudo-masks this is done at up to 640 pixels of the long side. Ids that are likeliest nowhere are left out.

    Raises:
        ValueError: when `crf` has settings that the dense CRF cannot have.
    """
    small = refined_size(size, MaskSettings())
    large = np.concatenate([strip for _, strip in strips(seen, small)], axis=1)
    ids = np.unique(large.argmax(0))
    if len(ids) == 1:
        return candidates(seen)
    likely = np.ascontiguousarray(large[ids])
    pixels = np.asarray(image.resize(small[::-1], Image.Resampling.BILINEAR))
    return Labels(tuple(ids.tolist()), dense_crf(likely, pixels, at_size(crf, small), threads=1), likely)


def label_pixels(labels: Labels, size: tuple[int, int], ids: int) -> Decided:
    """Return the mask of (height, width) `size` whose pixels have the likeliest of `labels`; there are `ids` ids."""
    count, refined = len(labels.ids), labels.decisive is not labels.network
    scores = np.concatenate([labels.decisive, labels.network]) if refined else labels.network
    values = np.array(labels.ids, np.uint8)
    mask = np.empty(size, np.uint8)
    pixels, sums = np.zeros(count, np.int64), np.zeros(count)
    for rows, strip in strips(scores, size):
        best = strip[:count].argmax(0)
        mask[rows] = values[best]
        sure = np.take_along_axis(strip[-count:], best[None], 0)[0]
        pixels += np.bincount(best.ravel(), minlength=count)
        sums += np.bincount(best.ravel(), sure.ravel(), minlength=count)
    area, confidence = np.zeros(ids), np.zeros(ids)
    area[list(labels.ids)] = pixels / mask.size
    confidence[list(labels.ids)] = sums / np.maximum(pixels, 1)
    return Decided(mask, tuple(area.tolist()), tuple(confidence.tolist()))
