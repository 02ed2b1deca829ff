"""The queue of masks to review, the least reliable first."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from tagseg.data.data_file import ImageRow, read_data_file
from tagseg.data.prepare import prepare
from tagseg.data.records import Sample
from tagseg.errors import RunError
from tagseg.evaluate.quality import ImageQuality, read_quality
from tagseg.evaluate.ranking import reasons, usual_areas
from tagseg.run.decisions import OPEN, Decision, Verdict
from tagseg.run.folder import Run
from tagseg.run.taught import Answer, marked_classes
from tagseg.settings.settings import Settings

Wanted = Verdict | Literal["all"]

WANTED: tuple[Wanted, ...] = (*get_args(Verdict), "all")


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """An image to review.

    sample: the image. size: its (height, width) in pixels. score, classes: the expected IoU (0..1) of its mask, in
    total and by class id, if it was computed. reason: why it is low, in words; empty if it is not.
    """

    sample: Sample
    size: tuple[int, int]
    score: float | None
    classes: Mapping[int, float]
    reason: str = ""


@dataclass(frozen=True)
class Queue:
    """The training images of a run, those with the least reliable masks first.

    run: stores the decisions. source: has the masks to review; after self-training, this is its last round. settings:
    those of `source`. data: the data folder. classes: class id i is `classes[i - 1]`.
    """

    run: Run
    source: Run
    settings: Settings
    data: Path
    classes: tuple[str, ...]
    items: tuple[ReviewItem, ...]
    places: Mapping[str, int] = field(init=False)
    """The index of each image in `items`, by its id."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", {item.sample.id: place for place, item in enumerate(self.items)})


@dataclass(frozen=True)
class Page:
    """A page of a list: the number of images in the list, how many of them come before, and the places of these."""

    total: int
    first: int
    places: tuple[int, ...]


def read_queue(run: Run) -> Queue:
    """Return the queue of a run's images; those without a score come last, in data order.

    Raises:
        RunError: when the run has no masks of its own, or they are not made yet.
        DataError: when the data must be read again for saliency maps and cannot be.
    """
    if labels := run.settings().segment.labels:
        raise RunError(f"{run.root}: uses the masks in {labels}, so it has no masks of its own to review")
    run.require("masks")
    source = run.final()
    settings = source.settings()
    saliency: dict[str, Path | None] = {}
    if settings.masks.saliency:
        saliency = {sample.id: sample.saliency for sample in prepare(run).dataset.split("train")}
    data, found = read_data_file(run), read_quality(run)
    usual = usual_areas(found)
    items = [
        _item(row, saliency.get(row.id), one, reasons(one, data.classes, usual) if one else "")
        for row, one in ((row, found.get(row.id)) for row in data.samples if row.split == "train")
    ]
    items.sort(key=lambda item: (item.score is None, item.score or 0.0))
    return Queue(run, source, settings, run.data_root().resolve(), data.classes, tuple(items))


def tagged_item(queue: Queue, item: ReviewItem, parts: Iterable[Answer]) -> ReviewItem:
    """Return an image with the tags that its clicks and strokes add."""
    names = {part.name for part in parts}
    added = {number for number, name in enumerate(queue.classes, 1) if name in names}
    tags = tuple(sorted({*item.sample.tags, *added}))
    return replace(item, sample=replace(item.sample, tags=tags))


def choose_page(
    queue: Queue,
    decided: Mapping[str, Decision],
    wanted: Wanted,
    class_id: int,
    count: int,
    start: int = 0,
    until: int | None = None,
) -> Page:
    """Return up to `count` images with the `wanted` verdict and a tag (0: any tag).

    They are the first ones from place `start` of the queue, or if `until` is given, the last ones before it. Decisions
    do not change places, so consecutive pages have no gaps.
    """
    marked = marked_classes(queue.run, queue.classes) if class_id else {}
    places = [
        place
        for place, item in enumerate(queue.items)
        if (wanted == "all" or decided.get(item.sample.id, OPEN).verdict == wanted)
        and (not class_id or class_id in item.sample.tags or class_id in marked.get(item.sample.id, ()))
    ]
    if until is None:
        first = bisect_left(places, start)
        last = min(first + count, len(places))
    else:
        last = bisect_left(places, until)
        first = max(last - count, 0)
    return Page(len(places), first, tuple(places[first:last]))


def count_verdicts(queue: Queue, decided: Mapping[str, Decision]) -> dict[str, int]:
    """Return the number of images with each verdict, and of all images."""
    counts = Counter(decision.verdict for sample_id, decision in decided.items() if sample_id in queue.places)
    counts["open"] = len(queue.items) - sum(counts[verdict] for verdict in get_args(Verdict) if verdict != "open")
    return {verdict: counts[verdict] for verdict in get_args(Verdict)} | {"all": len(queue.items)}


def _item(row: ImageRow, saliency: Path | None, judged: ImageQuality | None, reason: str) -> ReviewItem:
    sample = Sample(row.id, Path(row.image), row.tags, saliency=saliency)
    classes = {class_id: one.score for class_id, one in judged.classes.items()} if judged else {}
    return ReviewItem(sample, row.size, judged.score if judged else None, classes, reason)
