"""A verdict on every class of a run, without true masks: do its masks show it, how good are they, and what to do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from tagseg.data.data_file import DataFile, read_data_file
from tagseg.data.records import VOID
from tagseg.errors import RunError
from tagseg.evaluate.quality import read_quality
from tagseg.masks.mask_files import mask_file
from tagseg.run.folder import Run
from tagseg.system.progress import map_ahead

FEW_IMAGES, MOST_MISSING, DOUBTFUL = 20, 0.5, 0.4
"""Below these a class gets advice: its images, the share of its masks that show it, and its expected IoU."""

INSEPARABLE = 0.9
"""Two tags that share more of their images than this can hardly be told apart."""

_READERS = 2


@dataclass(frozen=True)
class ClassVerdict:
    """What is known of a class without true masks.

    images: training images with its tag. shown: how many of their masks show it. regions: its regions in the memory
    bank (None without one). expected: the mean expected IoU of its masks, 0..1 (None if masks were not judged).
    advice: what to do; empty if all is well.
    """

    name: str
    images: int
    shown: int
    regions: int | None
    expected: float | None
    advice: str


def class_verdicts(run: Run) -> list[ClassVerdict]:
    """Return a verdict on every class of a run from its final masks; none if the run learns from foreign masks.

    Raises:
        RunError: when a file of the run is damaged.
    """
    if run.settings().segment.labels:
        return []
    data = read_data_file(run)
    images = [row for row in data.samples if row.split == "train"]
    masks = run.final().masks

    def look(row: int) -> frozenset[int]:
        return _ids(mask_file(masks, images[row].id))

    shown: Counter[int] = Counter()
    for row, found in enumerate(map_ahead(range(len(images)), look, _READERS)):
        shown.update(found & {*images[row].tags})
    expected: list[list[float]] = [[] for _ in data.classes]
    for one in read_quality(run).values():
        for class_id, part in one.classes.items():
            expected[class_id - 1].append(part.score)
    regions = _regions(run, len(data.classes))
    tagged = Counter(tag for row in images for tag in row.tags)
    verdicts = []
    for class_id, name in enumerate(data.classes, 1):
        scores = expected[class_id - 1]
        mean = sum(scores) / len(scores) if scores else None
        advice = _advice(tagged[class_id], shown[class_id], mean, _companion(data, class_id, tagged))
        held = None if regions is None else regions[class_id]
        verdicts.append(ClassVerdict(name, tagged[class_id], shown[class_id], held, mean, advice))
    return verdicts


def verdict_table(verdicts: Sequence[ClassVerdict]) -> str:
    """Return the verdicts as a Markdown table."""
    rows = [
        "| class | images | masks that show it | regions | expected IoU | what to do |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for one in verdicts:
        name = one.name.replace("|", "\\|")
        regions = "-" if one.regions is None else str(one.regions)
        expected = "-" if one.expected is None else f"{100 * one.expected:.0f}"
        rows.append(f"| {name} | {one.images} | {one.shown} | {regions} | {expected} | {one.advice or 'nothing'} |")
    return "\n".join(rows) + "\n"


def _advice(images: int, shown: int, expected: float | None, companion: str) -> str:
    alone = f"always together with {companion}: add images of one without the other" if companion else ""
    if not images:
        return "no training image has this tag"
    if not shown:
        return "no mask shows it: " + (alone or "add images, or check its tags (tagseg worst RUN --tags)")
    if shown < (1 - MOST_MISSING) * images:
        return f"missing in {images - shown} masks: " + (alone or "look at them (tagseg review RUN)")
    if alone:
        return alone
    if expected is not None and expected < DOUBTFUL:
        return "doubtful masks: look at the worst (tagseg worst RUN)"
    return f"few images: with {FEW_IMAGES} or more it learns better" if images < FEW_IMAGES else ""


def _companion(data: DataFile, class_id: int, tagged: Counter[int]) -> str:
    """Return the class that a class can hardly be told from, as their images are the same; empty if none."""
    own = tagged[class_id]
    beside = Counter(tag for row in data.samples if row.split == "train" and class_id in row.tags for tag in row.tags)
    for tag, count in beside.most_common():
        if tag != class_id and count > INSEPARABLE * max(own, tagged[tag]):
            return data.classes[tag - 1]
    return ""


def _ids(file: Path) -> frozenset[int]:
    try:
        with Image.open(file) as mask:
            return frozenset(np.unique(np.asarray(mask)).tolist()) - {0, VOID}
    except OSError as error:
        raise RunError(
            f"{file}: must be the mask of a training image, found none that can be read ({error}); make "
            "the masks again: tagseg masks RUN --force"
        ) from error


def _regions(run: Run, classes: int) -> list[int] | None:
    """Return how many regions the bank holds per entry; None if there is no bank that fits."""
    try:
        with safe_open(run.network / "bank.safetensors", framework="numpy") as file:
            filled: list[int] = file.get_tensor("filled").tolist()
    except (OSError, SafetensorError):
        return None
    return filled if len(filled) == classes + 1 else None
