"""The ranking of masks: which to check first, and why."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tagseg.data.records import Dataset
from tagseg.evaluate.quality import ImageQuality
from tagseg.evaluate.suspects import Suspect
from tagseg.system.tables import csv_text

DOUBTFUL = 0.5
"""Lower scores and shares are given as a reason."""

UNUSUAL_SIZE = 8.0
"""An area this many times smaller or larger than the class's median is given as a reason."""


@dataclass(frozen=True)
class Worst:
    """An image to check: its id, its score (0..1), the scores of its classes by name, lowest first, and the reason."""

    id: str
    score: float
    classes: Mapping[str, float]
    reason: str


def worst_first(
    dataset: Dataset, found: Mapping[str, ImageQuality], settled: Collection[str] = (), count: int | None = None
) -> list[Worst]:
    """Return up to `count` training images with the least reliable masks, the least reliable first.

    Images in `settled` are left out: a person has accepted or rejected their masks.
    """
    usual = usual_areas(found)
    open_ones = [quality for name, quality in found.items() if name not in settled]
    chosen = sorted(open_ones, key=lambda quality: (quality.score, quality.id))[:count]
    return [_worst(dataset, quality, usual) for quality in chosen]


def usual_areas(found: Mapping[str, ImageQuality]) -> dict[int, float]:
    """Return the median area (0..1 of the image) of each class's masks."""
    areas: dict[int, list[float]] = {}
    for quality in found.values():
        for class_id, one in quality.classes.items():
            areas.setdefault(class_id, []).append(one.area)
    return {class_id: float(np.median(values)) for class_id, values in areas.items()}


def reasons(quality: ImageQuality, classes: Sequence[str], usual: Mapping[int, float]) -> str:
    """Return the main problem of each class of a mask, the least reliable class first; `usual` are the usual areas."""
    order = sorted(quality.classes, key=lambda class_id: quality.classes[class_id].score)
    found = (_reason(classes[class_id - 1], quality, class_id, usual[class_id]) for class_id in order)
    return "; ".join(filter(None, found))


def to_csv(worst: list[Worst]) -> str:
    """Return a CSV table with one row per image: image, score, classes with their scores, reason."""
    rows = [(one.id, f"{one.score:.3f}", classes_text(one.classes), one.reason) for one in worst]
    return csv_text(("image", "score", "classes", "reason"), rows)


def suspects_to_csv(suspects: list[Suspect], dataset: Dataset) -> str:
    """Return a CSV table with one row per tag: image, tag, wrong or missing, doubt."""
    rows = [(one.id, dataset.classes[one.class_id - 1], one.kind, f"{one.doubt:.3f}") for one in suspects]
    return csv_text(("image", "tag", "suspect", "doubt"), rows)


def classes_text(classes: Mapping[str, float]) -> str:
    """Return classes with their scores as one text."""
    return ", ".join(f"{name} {score:.2f}" for name, score in classes.items())


def _worst(dataset: Dataset, quality: ImageQuality, usual: Mapping[int, float]) -> Worst:
    order = sorted(quality.classes, key=lambda class_id: quality.classes[class_id].score)
    scores = {dataset.classes[class_id - 1]: quality.classes[class_id].score for class_id in order}
    return Worst(quality.id, quality.score, scores, reasons(quality, dataset.classes, usual))


def _reason(name: str, quality: ImageQuality, class_id: int, usual: float) -> str:
    """Return the main problem of one class of a mask; empty if there is none."""
    one = quality.classes[class_id]
    if not one.area:
        return f"no pixels of {name}"
    if one.score >= DOUBTFUL:
        return ""
    if one.area * UNUSUAL_SIZE < usual:
        return f"{name} is much smaller than in other images"
    if one.area > usual * UNUSUAL_SIZE:
        return f"{name} is much larger than in other images"
    if one.maps < DOUBTFUL:
        return f"maps and mask disagree about {name}"
    if one.stable < DOUBTFUL:
        return f"{name} changes with scale or mirroring"
    if one.unsure > 1 - DOUBTFUL:
        return f"most of {name} is unsure"
    return f"the network sees {name} elsewhere or not at all"
