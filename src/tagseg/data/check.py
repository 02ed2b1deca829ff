"""Decode every image once: learn the sizes, find what is broken, and hold the masks against the images."""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tagseg.data.images import image_size, load_mask
from tagseg.data.read import check_counts
from tagseg.data.records import CocoMask, Dataset, Sample
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.progress import Track, silent

_LISTED = 10
"""At most this many files are named in a message."""


@dataclass(frozen=True)
class Checked:
    """`sizes`: id -> (height, width) in pixels after EXIF orientation; `broken`: (path below the root, reason)."""

    sizes: dict[str, tuple[int, int]]
    broken: tuple[tuple[str, str], ...]


def check_images(dataset: Dataset, settings: DataSettings, track: Track = silent) -> Checked:
    """Decode all images, and check the masks of scored samples: sizes, and ids in mask files.

    Raises:
        DataError: naming up to 10 masks of another size than their image, or with unknown ids.
    """

    def check(sample: Sample) -> tuple[tuple[int, int] | None, str]:
        try:
            size = image_size(sample.image, settings.max_megapixels)
        except DataError as error:
            return None, str(error).removeprefix(f"{sample.image}: ")
        return size, _mask_fault(sample, dataset, size)

    sizes, broken, faults = {}, [], []
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        outcomes = track(pool.map(check, dataset.samples), "check images", len(dataset.samples))
        for sample, (size, fault) in zip(dataset.samples, outcomes, strict=True):
            if size is None:
                broken.append((below(dataset.root, sample.image), fault))
                continue
            sizes[sample.id] = size
            if fault:
                faults.append(fault)
    finally:
        # Interrupted, it would otherwise decode all the images that wait.
        pool.shutdown(cancel_futures=True)
    if faults:
        raise DataError(_list(faults))
    return Checked(sizes, tuple(broken))


def healthy(dataset: Dataset, checked: Checked, settings: DataSettings) -> Dataset:
    """Return the data set without its broken images, with a note that lists them.

    Raises:
        DataError: when more than `settings.max_broken` of the training images are broken, or a class has too few left.
    """
    if not checked.broken:
        return dataset
    reasons = dict(checked.broken)
    train = [below(dataset.root, sample.image) for sample in dataset.split("train")]
    lost = [f"{path}: {reasons[path]}" for path in train if path in reasons]
    if len(lost) > settings.max_broken * len(train):
        raise DataError(
            f"{dataset.root}: {len(lost)} of {len(train)} training images cannot be read, expected at most "
            f"{settings.max_broken:.0%} (setting data.max-broken): {_list(lost)}"
        )
    listed = _list([f"{path}: {reason}" for path, reason in checked.broken])
    whole = dataclasses.replace(
        dataset,
        samples=tuple(sample for sample in dataset.samples if below(dataset.root, sample.image) not in reasons),
        notes=(*dataset.notes, f"{len(reasons)} images cannot be read and are skipped: {listed}"),
    )
    check_counts(whole, settings)
    return whole


def below(root: Path, path: Path) -> str:
    """Return a path as it reads below `root`, or whole where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _mask_fault(sample: Sample, dataset: Dataset, size: tuple[int, int]) -> str:
    """What is wrong with a scored sample's mask, or nothing; COCO's are not drawn, only their size is compared."""
    if sample.mask is None or not sample.scored:
        return ""
    if isinstance(sample.mask, CocoMask):
        sample = dataclasses.replace(sample, mask=dataclasses.replace(sample.mask, segments=()))
    try:
        load_mask(sample, dataset, size)
    except DataError as error:
        return str(error)
    return ""


def _list(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return "; ".join(lines[:_LISTED]) + more


def require_saliency(dataset: Dataset, settings: DataSettings, needed_by: str) -> None:
    """Check that every training image has a saliency map, which the setting `needed_by` asks for.

    Raises:
        DataError: naming the first image without one and the folder where it was looked for.
    """
    samples = dataset.split("train")
    missing = [sample for sample in samples if sample.saliency is None]
    if missing:
        given = Path(settings.saliency or "saliency")
        folder = given if settings.saliency and not (dataset.root / given).is_dir() else dataset.root / given
        raise DataError(
            f"{missing[0].image}: no saliency map, expected {missing[0].id}.png or .jpg in {folder} (setting "
            f"data.saliency); {needed_by} needs one for every training image, and {len(missing)} of {len(samples)} "
            "have none"
        )
