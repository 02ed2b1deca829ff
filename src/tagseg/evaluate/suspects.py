"""Tags that are probably wrong or missing, according to the trained networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from tagseg.data.records import Dataset
from tagseg.evaluate.quality import ImageQuality

SuspectKind = Literal["wrong", "missing"]


@dataclass(frozen=True)
class Suspect:
    """A tag that is probably `wrong` (tagged but not in the image) or `missing` (in the image but not tagged).

    present: the networks' probability (0..1) that the class is in the image. usual: its mean over the images that are
    tagged as this one probably should be. doubt: the probability (0..1) that the tag is wrong or missing.
    """

    id: str
    class_id: int
    kind: SuspectKind
    present: float
    usual: float
    doubt: float


def find_suspects(dataset: Dataset, found: Mapping[str, ImageQuality]) -> list[Suspect]:
    """Return the training tags that are probably wrong or missing, the most certain first.

    This is confident learning (Northcutt, Jiang and Chuang 2021, section 3.1). A class counts as present if its
    probability is at least the mean over the images tagged with it, and as absent if it is at most the mean over the
    other images. A tag that contradicts this is a suspect. There is nothing to tune, and the thresholds adapt to
    classes that the networks are never confident about.
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
    kind: SuspectKind
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
    """Return the mean of each column's chosen values; `none`, which no value passes, if none is chosen."""
    counts = chosen.sum(0)
    sums = np.where(chosen, values, 0).sum(0)
    means: Float64[np.ndarray, " c"] = np.where(counts > 0, sums / np.maximum(counts, 1), none)
    return means
