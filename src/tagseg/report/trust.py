"""How good a run's masks are, without true masks: what the report says first when there are none."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tagseg.data.data_file import DataFile
from tagseg.data.read import read_dataset
from tagseg.errors import DataError
from tagseg.evaluate.quality import read_quality
from tagseg.evaluate.ranking import Worst, worst_first
from tagseg.evaluate.suspects import Suspect, find_suspects
from tagseg.rca.held_out import HeldOutTags, read_held_out
from tagseg.report.overlay import data_uri, masked_photo
from tagseg.run.folder import Run
from tagseg.run.history import EpochRow, read_history

WORST, SUSPECTS, BINS = 12, 12, 10
"""How many masks and tags are listed, and the bars of the distribution."""

STILL_FALLING = 0.1
"""A loss that falls by more than this share from the third to the last quarter of a training has not settled."""

_SIDE = 132
"""Long side of a picture in the list, in pixels."""


@dataclass(frozen=True)
class TrustBar:
    """A bar of the distribution: scores from `low` to `high`, in percent, its masks, and its share of the highest."""

    low: int
    high: int
    masks: int
    share: float


@dataclass(frozen=True)
class Doubtful:
    """A doubtful mask: what `worst` says of it, and a picture of the mask over its photograph (None: unreadable)."""

    worst: Worst
    picture: str | None


@dataclass(frozen=True)
class Trust:
    """How good the masks are without true masks. mean: the mean expected IoU in percent of `masks` masks.

    suspects: tag, photograph and kind of the tags that are most likely wrong or missing, of `suspect_count`.
    held_out: tags of held-out photographs. falling: networks whose loss still fell at the end, with what to do.
    """

    masks: int
    mean: float
    bars: tuple[TrustBar, ...]
    worst: tuple[Doubtful, ...]
    suspects: tuple[tuple[str, Suspect], ...]
    suspect_count: int
    held_out: HeldOutTags | None
    falling: tuple[str, ...]


def read_trust(run: Run, data: DataFile) -> Trust | None:
    """Return what is known of a run's masks without true masks; None if they were not judged.

    Raises:
        RunError: when a file of the run is damaged.
        DataError: when the data folder can no longer be read.
    """
    found = read_quality(run)
    if not found or run.settings().segment.labels:
        return None
    dataset = read_dataset(run.data_root(), run.settings().data, run.settings().cache)
    suspects = find_suspects(dataset, found)
    scores = [one.score for one in found.values()]
    paths = {row.id: row.image for row in data.samples}
    worst = worst_first(dataset, found, count=WORST)
    return Trust(
        masks=len(scores),
        mean=100 * float(np.mean(scores)),
        bars=distribution(scores),
        worst=tuple(Doubtful(one, _picture(run, one.id, paths.get(one.id))) for one in worst),
        suspects=tuple((dataset.classes[one.class_id - 1], one) for one in suspects[:SUSPECTS]),
        suspect_count=len(suspects),
        held_out=read_held_out(run.network),
        falling=tuple(_still_falling(run)),
    )


def distribution(scores: Sequence[float]) -> tuple[TrustBar, ...]:
    """Return how many scores (0..1) lie in each of `BINS` equal parts; 1 belongs to the last.

    >>> [bar.masks for bar in distribution([0.05, 0.95, 1.0])]
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    """
    counts, _ = np.histogram(scores, BINS, (0, 1))
    step = 100 // BINS
    return tuple(
        TrustBar(i * step, (i + 1) * step, int(n), float(n / max(counts.max(), 1))) for i, n in enumerate(counts)
    )


def is_falling(history: Sequence[EpochRow]) -> bool:
    """Tell whether a training's loss still fell at its end: from the third to the last quarter of its epochs by more
    than `STILL_FALLING`. Fewer than 8 epochs say nothing."""
    losses = [row.loss for row in history if row.loss is not None]
    quarter = len(losses) // 4
    if quarter < 2:
        return False
    before, last = float(np.mean(losses[-2 * quarter : -quarter])), float(np.mean(losses[-quarter:]))
    return last < (1 - STILL_FALLING) * before


def _still_falling(run: Run) -> list[str]:
    settings, said = run.settings(), []
    if settings.train.method != "frozen" and is_falling(read_history(run.network / "history.jsonl")):
        said.append("the classification network is under-trained, its loss still fell at the end: more --train.epochs")
    if is_falling(read_history(run.segmenter / "history.jsonl")):
        more = "--segment.epochs" if settings.segment.epochs else "--segment.steps"
        said.append(f"the segmentation network is under-trained, its loss still fell at the end: more {more}")
    return said


def _picture(run: Run, sample_id: str, image: str | None) -> str | None:
    if image is None:
        return None
    try:
        picture = masked_photo(run, sample_id, image, _SIDE)
    except DataError:
        return None  # the report of an older run, whose photographs are gone
    return data_uri(picture, "jpeg", quality=80)
