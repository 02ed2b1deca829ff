"""Read a data folder of any layout: recognise the layout, read it, and check what every layout must meet."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tagseg.data.coco import instance_files, read_coco
from tagseg.data.folder import class_folders, read_folder, tag_files
from tagseg.data.listing import keep_listing, read_listing, state_of
from tagseg.data.records import MAX_CLASSES, Dataset, Sample
from tagseg.data.shards import read_shards, shard_files
from tagseg.data.voc import read_voc, voc_root
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.process import gc_paused
from tagseg.system.untrusted import shown

_MAX_NAME = 1000


def read_dataset(root: str | Path, settings: DataSettings = DataSettings(), cache: bool = False) -> Dataset:
    """Read a data folder of any layout.

    Images whose ids differ only in their suffix keep the suffix. With `cache`, the listing of a large folder is stored
    in the user's cache folder and reused while the data folder is unchanged (see listing.py).

    Raises:
        DataError: when no layout fits, a row or file is wrong, a class has too few images, or there are too many
            classes.
    """
    root = Path(root)
    if not os.path.isdir(root):  # Path.is_dir raises for names that no folder can have
        raise DataError(f"{root}: no such folder, expected the data folder")
    root = root.resolve()
    with gc_paused():
        dataset = read_listing(root, settings) if cache else None
        if dataset is None:
            state = state_of(root, settings) if cache else None
            dataset = _read(root, settings)
            if state is not None:
                keep_listing(dataset, settings, state)
    check_counts(dataset, settings)
    return dataset


def _read(root: Path, settings: DataSettings) -> Dataset:
    layout = recognise(root, settings) if settings.layout == "auto" else settings.layout
    readers: dict[str, Callable[[Path, DataSettings], Dataset]] = {
        "folder": read_folder,
        "voc": read_voc,
        "coco": read_coco,
        "shards": read_shards,
    }
    dataset = readers[layout](root, settings)
    if not dataset.split("train"):
        raise DataError(f"{root}: there must be training images, found none (read as layout {layout})")
    if len(dataset.classes) > MAX_CLASSES:
        raise DataError(f"{root}: {len(dataset.classes)} classes, expected at most {MAX_CLASSES}")
    paths = Counter(sample.image for sample in dataset.samples)
    twice = next((path for path, times in paths.items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{root}: image {twice} is listed more than once; list it once, in train or in validation")
    _check_names(dataset)
    return dataclasses.replace(dataset, samples=_with_unique_ids(dataset))


def recognise(root: Path, settings: DataSettings) -> str:
    """Return the layout of a data folder: voc, coco, folder or shards.

    Raises:
        DataError: with the list of known layouts, when none fits.
    """
    if voc_root(root) is not None:
        return "voc"
    if any((root / "annotations").glob("instances_*.json")):
        return "coco"
    if tag_files(root):
        return "folder"
    folders = class_folders(root, settings)
    # A tar next to folders of images is usually the archive that they were unpacked from.
    if not folders and not (root / "images").is_dir() and shard_files(root):
        return "shards"
    if any(instance_files(root)):
        return "coco"
    if folders:
        return "folder"
    raise DataError(
        f"{root}: found no images in a known layout; looked for tags.csv, metadata.csv or metadata.jsonl (also in "
        "train/ and val/), one folder per class, JPEGImages and ImageSets (VOC), annotations/instances_train*.json or "
        "a single JSON file (COCO), tar shards (*.tar, also in train/ and val/)"
    )


def check_counts(dataset: Dataset, settings: DataSettings) -> None:
    """Raise DataError with every class that has fewer than `settings.min_images` training images."""
    counts = Counter(tag for sample in dataset.split("train") for tag in sample.tags)
    numbered = enumerate(dataset.classes, start=1)
    few = [f"{name} has {counts[number]}" for number, name in numbered if counts[number] < settings.min_images]
    if few:
        raise DataError(
            f"{dataset.root}: too few training images: {', '.join(few)}, "
            f"expected at least {settings.min_images} of each class (setting data.min-images)"
        )


def _check_names(dataset: Dataset) -> None:
    for name in dataset.classes:
        if not 0 < len(name) <= _MAX_NAME or not _is_text(name):
            raise DataError(
                f"{dataset.root}: class name {shown(name)}, expected 1 to {_MAX_NAME} characters of valid Unicode"
            )
    for sample in dataset.samples:
        if not _is_text(sample.id):
            raise DataError(f"{dataset.root}: image name {shown(sample.id)} is not valid Unicode; rename the file")


def _is_text(name: str) -> bool:
    # JSON and file systems deliver invalid Unicode as lone surrogates, which cannot be written to a file.
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_unique_ids(dataset: Dataset) -> tuple[Sample, ...]:
    """Add the suffix to ids that are equal; if that is not enough, use the path below the data folder."""
    samples = dataset.samples
    renames: tuple[Callable[[Sample], str], ...] = (
        lambda sample: sample.id + sample.image.suffix,
        lambda sample: sample.image.relative_to(dataset.root).as_posix(),
    )
    for rename in renames:
        times = Counter(sample.id for sample in samples)
        if len(times) == len(samples):
            break
        samples = tuple(
            dataclasses.replace(sample, id=rename(sample)) if times[sample.id] > 1 else sample for sample in samples
        )
    return samples
