"""Tags that are likely wrong or missing, by what the trained networks see in the images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from tagseg.data.records import Dataset
from tagseg.review.scores import ImageQuality

Kind = Literal["wrong", "missing"]


@dataclass(frozen=True)
class Suspect:
    """A tag that is likely `wrong` (the image has it, and does not show it) or `missing` (the other way round).

    present: how likely (0..1) the class is in the image, by the networks. usual: how likely it is on average in images
    that are tagged the way this one should be. doubt: how sure (0..1) it is that something is the matter.
    """

    id: str
    class_id: int
    kind: Kind
    present: float
    usual: float
    doubt: float


def find_suspects(dataset: Dataset, found: Mapping[str, ImageQuality]) -> list[Suspect]:
    """Return the training tags that are likely wrong or missing, the surest first.

    Confident learning (Northcutt, Jiang and Chuang 2021, section 3.1): a class is taken to be in an image from the mean
    likelihood that it has in the images tagged with it; and not to be there up to the mean in those that are not. Where
    that contradicts the tags, they are suspects. Nothing needs to be set, and a class that the networks are never sure
    of is judged by its own measure.
    """
    samples = [sample for sample in dataset.split("train") if sample.id in found]
    present = np.zeros((len(samples), len(dataset.classes)))
    tagged = np.zeros(present.shape, bool)
    for row, sample in enumerate(samples):
        tagged[row, [tag - 1 for tag in sample.tags]] = True
        for class_id, value in found[sample.id].present.items():
            present[row, class_id - 1] = value
    with_tag, without = _means(present, tagged, np.inf), _means(present, ~tagged, -np.inf)
    suspects: list[Suspect] = []
    kind: Kind
    for row, column in np.argwhere(np.where(tagged, present <= without, present >= with_tag)):
        likely = float(present[row, column])
        if tagged[row, column]:
            kind, usual, doubt = "wrong", float(without[column]), 1 - likely
        else:
            kind, usual, doubt = "missing", float(with_tag[column]), likely
        suspects.append(Suspect(samples[row].id, int(column) + 1, kind, likely, usual, doubt))
    return sorted(suspects, key=lambda suspect: (-suspect.doubt, suspect.id, suspect.class_id))


def _means(
    values: Float64[np.ndarray, "n c"], chosen: Bool[np.ndarray, "n c"], none: float
) -> Float64[np.ndarray, " c"]:
    """The mean of each column's chosen values; `none` where none is, so that nothing gets past it."""
    counts = chosen.sum(0)
    sums = np.where(chosen, values, 0).sum(0)
    means: Float64[np.ndarray, " c"] = np.where(counts > 0, sums / np.maximum(counts, 1), none)
    return means
