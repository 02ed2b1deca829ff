"""What to look at first: the masks that are trusted least, and why."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tagseg.data.records import Dataset
from tagseg.review.scores import ImageQuality
from tagseg.review.suspects import Suspect

DOUBTFUL = 0.5
"""Shares below this are named as a reason."""

FAR = 8.0
"""A class whose area is so many times smaller or larger than usual is named as a reason."""


@dataclass(frozen=True)
class Worst:
    """An image to look at: its id, score (0..1), those of its classes by name, the lowest first, and what is odd about
    them."""

    id: str
    score: float
    classes: Mapping[str, float]
    reason: str


def worst_first(
    dataset: Dataset, found: Mapping[str, ImageQuality], settled: Collection[str] = (), count: int | None = None
) -> list[Worst]:
    """Return the training images whose masks are trusted least, the least trusted first, at most `count`.

    Ids in `settled` are left out: a person has accepted or rejected their masks.
    """
    areas: dict[int, list[float]] = {}
    for quality in found.values():
        for class_id, one in quality.classes.items():
            areas.setdefault(class_id, []).append(one.area)
    usual = {class_id: float(np.median(values)) for class_id, values in areas.items()}
    open_ones = [quality for name, quality in found.items() if name not in settled]
    chosen = sorted(open_ones, key=lambda quality: (quality.score, quality.id))[:count]
    return [_worst(dataset, quality, usual) for quality in chosen]


def to_csv(worst: list[Worst]) -> str:
    """Return a table with a row an image: image, score, classes with their scores, reason."""
    rows = [(one.id, f"{one.score:.3f}", classes_text(one.classes), one.reason) for one in worst]
    return _csv(("image", "score", "classes", "reason"), rows)


def suspects_to_csv(suspects: list[Suspect], dataset: Dataset) -> str:
    """Return a table with a row a tag: image, tag, wrong or missing, doubt."""
    rows = [(one.id, dataset.classes[one.class_id - 1], one.kind, f"{one.doubt:.3f}") for one in suspects]
    return _csv(("image", "tag", "suspect", "doubt"), rows)


def classes_text(classes: Mapping[str, float]) -> str:
    """Return classes with their scores as one text."""
    return ", ".join(f"{name} {score:.2f}" for name, score in classes.items())


def _worst(dataset: Dataset, quality: ImageQuality, usual: Mapping[int, float]) -> Worst:
    order = sorted(quality.classes, key=lambda class_id: quality.classes[class_id].score)
    scores = {dataset.classes[class_id - 1]: quality.classes[class_id].score for class_id in order}
    reasons = [_reason(dataset.classes[class_id - 1], quality, class_id, usual[class_id]) for class_id in order]
    return Worst(quality.id, quality.score, scores, "; ".join(filter(None, reasons)))


def _reason(name: str, quality: ImageQuality, class_id: int, usual: float) -> str:
    """What is odd about one class of a mask, the gravest; empty where nothing is."""
    one = quality.classes[class_id]
    if not one.area:
        return f"no pixel is {name}"
    if one.score >= DOUBTFUL:
        return ""
    if one.area * FAR < usual:
        return f"{name} is far smaller than in other images"
    if one.area > usual * FAR:
        return f"{name} is far larger than in other images"
    if one.maps < DOUBTFUL:
        return f"maps and mask differ for {name}"
    if one.stable < DOUBTFUL:
        return f"{name} changes with scale or mirroring"
    if one.unsure > 1 - DOUBTFUL:
        return f"most of {name} is unsure"
    return f"the network sees {name} elsewhere or not at all"


def _csv(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
