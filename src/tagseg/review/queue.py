"""What there is to review, and in which order: the masks to be trusted least come first."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from tagseg.data.data_file import ImageRow, read_data_file
from tagseg.data.prepare import prepare
from tagseg.data.records import Sample
from tagseg.errors import RunError
from tagseg.review.scores import ImageQuality, read_quality
from tagseg.run.decisions import OPEN, Decision, Verdict
from tagseg.run.folder import Run
from tagseg.settings.settings import Settings

Wanted = Verdict | Literal["all"]

WANTED: tuple[Wanted, ...] = (*get_args(Verdict), "all")


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """An image to review: its sample, its (height, width) in pixels and, where that was computed, how far its masks are
    to be trusted (0..1), in all and by class id."""

    sample: Sample
    size: tuple[int, int]
    score: float | None
    classes: Mapping[int, float]


@dataclass(frozen=True)
class Queue:
    """The training images of a run, those to be trusted least first.

    run: where decisions are kept. source: whose masks are reviewed, the last round's where there was self-training.
    settings: those the masks were made with. data: the data folder. classes: class id i is `classes[i - 1]`.
    """

    run: Run
    source: Run
    settings: Settings
    data: Path
    classes: tuple[str, ...]
    entries: tuple[ReviewItem, ...]
    places: Mapping[str, int] = field(init=False)
    """Where in `entries` an image stands, by its id."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", {entry.sample.id: place for place, entry in enumerate(self.entries)})


@dataclass(frozen=True)
class Page:
    """A part of a list: how many images the whole list has, how many of them stand before, and the places of these."""

    total: int
    first: int
    places: tuple[int, ...]


def read_queue(run: Run) -> Queue:
    """Return what there is to review of a run; images without a score stand behind all others, in the data's order.

    Raises:
        RunError: when the run has no masks of its own, or they are not made yet.
        DataError: when the data must be read again for its saliency maps, and cannot be.
    """
    if run.settings().segment.labels:
        raise RunError(f"{run.root}: learns from the masks in {run.settings().segment.labels}; it made none to review")
    run.require("masks")
    source = run.final()
    settings = source.settings()
    saliency: dict[str, Path | None] = {}
    if settings.masks.saliency:
        saliency = {sample.id: sample.saliency for sample in prepare(run).dataset.split("train")}
    data, found = read_data_file(run), read_quality(run)
    entries = [_entry(row, saliency.get(row.id), found.get(row.id)) for row in data.samples if row.split == "train"]
    entries.sort(key=lambda entry: (entry.score is None, entry.score or 0.0))
    return Queue(run, source, settings, run.data_root().resolve(), data.classes, tuple(entries))


def choose_page(
    queue: Queue,
    decided: Mapping[str, Decision],
    wanted: Wanted,
    class_id: int,
    count: int,
    start: int = 0,
    until: int | None = None,
) -> Page:
    """Return up to `count` of the images with the `wanted` verdict that are tagged with a class (0: any class).

    They are the first ones from place `start` of the queue on; or, where `until` is given, the last ones before it.
    Places do not move when something is decided, so that pages join without gaps.
    """
    places = [
        place
        for place, entry in enumerate(queue.entries)
        if (wanted == "all" or decided.get(entry.sample.id, OPEN).verdict == wanted)
        and (not class_id or class_id in entry.sample.tags)
    ]
    if until is None:
        first = bisect_left(places, start)
        last = min(first + count, len(places))
    else:
        last = bisect_left(places, until)
        first = max(last - count, 0)
    return Page(len(places), first, tuple(places[first:last]))


def count_verdicts(queue: Queue, decided: Mapping[str, Decision]) -> dict[str, int]:
    """Return how many images have each verdict, and how many there are in all."""
    counts = Counter(decision.verdict for sample_id, decision in decided.items() if sample_id in queue.places)
    counts["open"] = len(queue.entries) - sum(counts[verdict] for verdict in get_args(Verdict) if verdict != "open")
    return {verdict: counts[verdict] for verdict in get_args(Verdict)} | {"all": len(queue.entries)}


def _entry(row: ImageRow, saliency: Path | None, judged: ImageQuality | None) -> ReviewItem:
    sample = Sample(row.id, Path(row.image), row.tags, saliency=saliency)
    classes = {class_id: one.score for class_id, one in judged.classes.items()} if judged else {}
    return ReviewItem(sample, row.size, judged.score if judged else None, classes)
