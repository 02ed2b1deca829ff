"""One door to every layout: recognise the data folder, read it, and check what holds for all layouts."""

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
    """Read a data folder of any layout; ids of images that differ in suffix alone keep the suffix.

    With `cache` what was found in a large folder is kept in the user's cache folder, and taken from there as long as
    the data folder is as it was (see manifest.py).

    Raises:
        DataError: when no layout fits, a row or file is wrong, a class has too few images, or classes are too many.
    """
    root = Path(root)
    if not os.path.isdir(root):  # for Path.is_dir a name that no folder can have is an error of its own
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
        raise DataError(f"{root}: no images for training at all (read as layout {layout})")
    if len(dataset.classes) > MAX_CLASSES:
        raise DataError(f"{root}: {len(dataset.classes)} classes, expected at most {MAX_CLASSES}")
    paths = Counter(sample.image for sample in dataset.samples)
    twice = next((path for path, times in paths.items() if times > 1), None)
    if twice is not None:
        raise DataError(
            f"{root}: image {twice} is listed more than once, expected once in train and validation together"
        )
    _check_names(dataset)
    return dataclasses.replace(dataset, samples=_with_unique_ids(dataset))


def recognise(root: Path, settings: DataSettings) -> str:
    """Return the layout of a data folder: voc, coco, folder or shards.

    Raises:
        DataError: saying what was looked for, when nothing fits.
    """
    if voc_root(root) is not None:
        return "voc"
    if any((root / "annotations").glob("instances_*.json")):
        return "coco"
    if tag_files(root):
        return "folder"
    folders = class_folders(root, settings)
    # A tar beside folders of images is where they came from.
    if not folders and not (root / "images").is_dir() and shard_files(root):
        return "shards"
    if any(instance_files(root)):
        return "coco"
    if folders:
        return "folder"
    raise DataError(
        f"{root}: no images in a layout that is known; looked for tags.csv, metadata.csv or metadata.jsonl (also in "
        "train/ and val/), one folder per class, JPEGImages and ImageSets (VOC), annotations/instances_train*.json or "
        "a single JSON file (COCO), tar shards (*.tar, also in train/ and val/)"
    )


def check_counts(dataset: Dataset, settings: DataSettings) -> None:
    """Raise DataError naming every class that has fewer training images than `settings.min_images`."""
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
                f"{dataset.root}: a class is called {shown(name)}, expected 1 to {_MAX_NAME} signs of Unicode text"
            )
    for sample in dataset.samples:
        if not _is_text(sample.id):
            raise DataError(f"{dataset.root}: the name of image {shown(sample.id)} is no Unicode text, rename it")


def _is_text(name: str) -> bool:
    # What is no Unicode comes as lone surrogates, from JSON and from file systems; no file could hold it.
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_unique_ids(dataset: Dataset) -> tuple[Sample, ...]:
    """Where ids are equal, add the suffix; where that is not enough, take the path below the data folder."""
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
