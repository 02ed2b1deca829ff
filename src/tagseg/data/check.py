"""Decode every image once: find the sizes and the broken files, and compare the masks with the images."""

import dataclasses
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tagseg.data.images import measure
from tagseg.data.read import check_counts
from tagseg.data.records import VOID, CocoMask, Dataset, Sample
from tagseg.data.segmentations import check_segments
from tagseg.data.tars import content_mark, open_file
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.progress import Track, silent

_LISTED = 10
"""A message names at most this many files."""


@dataclass(frozen=True)
class Checked:
    """`sizes`: (height, width) in pixels by id, after EXIF orientation; `broken`: (path below the root, reason).

    `notes` say what the user should know about how images and masks are read, `warnings` what may be wrong with them.
    """

    sizes: dict[str, tuple[int, int]]
    broken: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Outcome:
    """What was found about one image: its size (None: broken), or the fault of it or its mask.

    deep: it has more than 8 bits per channel. ids: class ids in its mask (None: no mask file). slivers: segmentations
    without area.
    """

    size: tuple[int, int] | None
    fault: str = ""
    deep: bool = False
    ids: frozenset[int] | None = None
    slivers: int = 0


def check_images(dataset: Dataset, settings: DataSettings, track: Track = silent) -> Checked:
    """Decode all images, and check size and ids of the masks of scored samples.

    Raises:
        DataError: with up to 3 masks that differ from their image in size, or have unknown ids; when masks hold only
            background and void; or when most masks have none of their image's tags.
    """
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        found = pool.map(lambda sample: _outcome(sample, dataset, settings), dataset.samples)
        outcomes = list(track(found, "check images", len(dataset.samples)))
    finally:
        # Without this, an interrupted check would first decode all waiting images.
        pool.shutdown(cancel_futures=True)
    pairs = list(zip(dataset.samples, outcomes, strict=True))
    faults = [one.fault for _, one in pairs if one.size is not None and one.fault]
    if faults:
        raise DataError(_first_lines(faults, 3))
    deep = [below(dataset.root, sample.image) for sample, one in pairs if one.deep]
    slivers = [below(dataset.root, sample.image) for sample, one in pairs for _ in range(one.slivers)]
    notes = []
    if deep:
        notes.append(
            f"{len(deep)} images have more than 8 bits per channel ({_few(deep)}): each is scaled from the number of "
            "bits, 8, 10, 12, 14 or 16, that its largest value needs"
        )
    warnings = [*_mask_warnings(dataset, pairs), *_copy_warnings(dataset, pairs)]
    if slivers:
        warnings.append(f"{len(slivers)} annotations have no area ({_few(slivers)}): they give a tag but no pixel")
    return Checked(
        {sample.id: one.size for sample, one in pairs if one.size is not None},
        tuple((below(dataset.root, sample.image), one.fault) for sample, one in pairs if one.size is None),
        tuple(notes),
        tuple(warnings),
    )


def _outcome(sample: Sample, dataset: Dataset, settings: DataSettings) -> _Outcome:
    try:
        size, deep = measure(sample.image, settings.max_megapixels)
    except DataError as error:
        return _Outcome(None, str(error).removeprefix(f"{sample.image}: "))
    if sample.mask is None or not sample.scored:
        return _Outcome(size, deep=deep)
    try:
        if isinstance(sample.mask, CocoMask):
            # Only checked, not drawn.
            load_mask(dataclasses.replace(sample, mask=dataclasses.replace(sample.mask, segments=())), dataset, size)
            return _Outcome(size, deep=deep, slivers=check_segments(sample.mask, sample.image))
        ids = frozenset(map(int, np.unique(load_mask(sample, dataset, size))))
    except DataError as error:
        return _Outcome(size, str(error), deep)
    return _Outcome(size, deep=deep, ids=ids)


def _mask_warnings(dataset: Dataset, pairs: Sequence[tuple[Sample, _Outcome]]) -> Iterator[str]:
    """Yield a warning if some masks have none of their image's tags.

    Raises:
        DataError: when masks hold nothing but background and void, or most have none of their tags.
    """
    masked = [(sample, one.ids) for sample, one in pairs if one.ids is not None]
    tagged = [(sample, ids) for sample, ids in masked if sample.tags]
    black_and_white = [sample for sample, ids in masked if ids <= {0, VOID} and VOID in ids]
    if black_and_white and not any(ids - {0, VOID} for _, ids in masked):
        name = dataset.classes[0] if len(dataset.classes) == 1 else "CLASS"
        raise DataError(
            f"{black_and_white[0].mask}: the masks hold only 0 (background) and 255 (void), no pixel of a class; if "
            f"255 is a class, say so with --data.mask-values 255={name} ({len(black_and_white)} of {len(masked)} masks "
            "have 255)"
        )
    names = {0: "background", VOID: "void", **dict(enumerate(dataset.classes, 1))}

    def example(sample: Sample, ids: frozenset[int]) -> str:
        tags = ", ".join(names[tag] for tag in sample.tags)
        shown = ", ".join(names[number] for number in sorted(ids))
        return f"{below(dataset.root, sample.image)} is tagged {tags}, its mask has {shown}"

    without = [(sample, ids) for sample, ids in tagged if not ids & set(sample.tags)]
    other = [sample for sample, ids in without if ids - {0, VOID}]
    also = [(sample, ids) for sample, ids in tagged if ids & set(sample.tags) and ids - {0, VOID} - set(sample.tags)]
    if also:
        yield f"{len(also)} of {len(tagged)} masks also contain classes that are not tags ({example(*also[0])})"
    if not without:
        return
    sample, ids = next((one for one in without if one[1] - {0, VOID}), without[0])
    if len(other) > len(tagged) / 2:
        raise DataError(
            f"{sample.mask}: {len(other)} of {len(tagged)} masks have other classes than their image's tags "
            f"({example(sample, ids)}); the values of the masks seem to mean other classes: say which with "
            "--data.mask-values, for example 1=cat,2=dog, or with a class_names.txt or labelmap.txt beside the masks"
        )
    yield f"{len(without)} of {len(tagged)} masks contain none of their image's tags ({example(sample, ids)})"


def _copy_warnings(dataset: Dataset, pairs: Sequence[tuple[Sample, _Outcome]]) -> Iterator[str]:
    """Yield a warning if the same photograph is there several times: nothing is learned from it again, and where its
    tags differ, nothing at all."""
    samples = {sample.image: sample for sample, outcome in pairs if outcome.size is not None}
    copies = [(samples[path], samples[group[0]]) for group in same_content(samples) for path in group[1:]]
    if not copies:
        return
    other = [pair for pair in copies if pair[0].tags != pair[1].tags]
    one, first = (other or copies)[0]
    said = f"{below(dataset.root, one.image)} is {below(dataset.root, first.image)}"
    tagged = f", {len(other)} of them with other tags" if other else ""
    yield (
        f"{len(copies)} of {len(pairs)} images are copies of others{tagged} ({said}); remove them: nothing is learned "
        "from a copy, and copies in both splits make scores too high"
    )


def same_content(paths: Iterable[Path]) -> list[list[Path]]:
    """Return the groups of files that have the same content; only files of one mark (see `content_mark`) are read."""
    alike: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        alike[content_mark(path)].append(path)
    groups: dict[str, list[Path]] = defaultdict(list)
    for mark, some in alike.items():
        for path in some if mark and len(some) > 1 else ():
            with open_file(path) as file:
                groups[hashlib.file_digest(file, "sha256").hexdigest()].append(path)
    return [group for group in groups.values() if len(group) > 1]


def healthy(dataset: Dataset, checked: Checked, settings: DataSettings) -> Dataset:
    """Return the data set without its broken images, and with a note that lists them.

    Raises:
        DataError: when more than `settings.max_broken` of the training images are broken, or too few of a class remain.
    """
    if not checked.broken:
        return dataset
    reasons = dict(checked.broken)
    train = [below(dataset.root, sample.image) for sample in dataset.split("train")]
    lost = [f"{path}: {reasons[path]}" for path in train if path in reasons]
    if len(lost) > settings.max_broken * len(train):
        raise DataError(
            f"{dataset.root}: {len(lost)} of {len(train)} training images cannot be read, expected at most "
            f"{settings.max_broken:.0%} (setting data.max-broken): {_first_lines(lost)}"
        )
    listed = _first_lines([f"{path}: {reason}" for path, reason in checked.broken])
    whole = dataclasses.replace(
        dataset,
        samples=tuple(sample for sample in dataset.samples if below(dataset.root, sample.image) not in reasons),
        notes=(*dataset.notes, f"{len(reasons)} images cannot be read and are skipped: {listed}"),
    )
    check_counts(whole, settings)
    return whole


def below(root: Path, path: Path) -> str:
    """Return a path relative to `root`, or unchanged if it is elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _first_lines(lines: Sequence[str], most: int = _LISTED) -> str:
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


def require_saliency(dataset: Dataset, settings: DataSettings, needed_by: str) -> None:
    """Check that every training image has a saliency map, which the setting `needed_by` requires.

    Raises:
        DataError: with the first image that has none, and the folder that was searched.
    """
    samples = dataset.split("train")
    missing = [sample for sample in samples if sample.saliency is None]
    if missing:
        given = Path(settings.saliency or "saliency")
        folder = given if settings.saliency and not (dataset.root / given).is_dir() else dataset.root / given
        raise DataError(
            f"{missing[0].image}: no saliency map, expected {missing[0].id}.png or .jpg in {folder} (setting "
            f"data.saliency); {needed_by} needs one for every training image, and {len(missing)} of {len(samples)} "
            "have none; docs/rivals.md has a command that makes them"
        )
