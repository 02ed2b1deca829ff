"""Read a data folder of any layout: one table of layouts, and checks of what every layout must meet."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tagseg.data.class_folders import class_folders, read_class_folders
from tagseg.data.classes import named_classes
from tagseg.data.coco import instance_files, read_coco
from tagseg.data.folder import read_folder
from tagseg.data.ignored import is_junk
from tagseg.data.images import IMAGE_SUFFIXES
from tagseg.data.listing import keep_listing, read_listing, state_of
from tagseg.data.records import MAX_CLASSES, Dataset, Sample
from tagseg.data.shards import read_shards, shard_files
from tagseg.data.tag_rows import SPLIT_NAMES
from tagseg.data.tag_sources import find_source
from tagseg.data.voc import read_voc, voc_root
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.process import gc_paused
from tagseg.system.untrusted import shown

_MAX_NAME = 1000
_MAX_PART, _MAX_ID = 251, 2000
"""Most bytes in a part of an image's id, with the suffix of its mask what a file system allows, and in all."""


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
        cache = cache and not settings.tags  # a change of a table elsewhere would not be noticed
        dataset = read_listing(root, settings) if cache else None
        if dataset is None:
            state = state_of(root, settings) if cache else None
            dataset = _read(root, settings)
            if state is not None:
                keep_listing(dataset, settings, state)
    dataset = named_classes(dataset, settings)
    if len(dataset.classes) > MAX_CLASSES:
        raise DataError(
            f"{root}: {len(dataset.classes)} classes, expected at most {MAX_CLASSES}, because a pixel of a mask is one "
            "byte; merge some with --data.rename"
        )
    check_counts(dataset, settings)
    return dataset


@dataclass(frozen=True)
class Layout:
    """A layout of data folders: what it is known by, whether a folder has it, and how it is read."""

    name: Literal["folder", "voc", "coco", "shards"]
    known_by: str
    fits: Callable[[Path, DataSettings], bool]
    read: Callable[[Path, DataSettings], Dataset]


LAYOUTS = (
    Layout("voc", "JPEGImages and ImageSets (VOC)", lambda root, _: voc_root(root) is not None, read_voc),
    Layout(
        "coco",
        "annotations/instances_train*.json or a single JSON file (COCO), _annotations.coco.json (Roboflow)",
        lambda root, _: any((root / "annotations").glob("instances_*.json")) or bool(instance_files(root).train),
        read_coco,
    ),
    Layout(
        "folder",
        "tags.csv, metadata.csv or metadata.jsonl (also in train/ and val/), or the export of an annotation tool",
        lambda root, _: find_source(root) is not None,
        read_folder,
    ),
    Layout("shards", "tar shards (*.tar, also in train/ and val/)", lambda root, _: _has_shards(root), read_shards),
    Layout(
        "folder",
        "one folder per class",
        lambda root, settings: bool(class_folders(root, settings).folders),
        read_class_folders,
    ),
)
"""All layouts, in the order in which they are tried: known files come before folders of any name."""


_TABLE_ELSEWHERE = Layout("folder", "setting data.tags", lambda root, settings: bool(settings.tags), read_folder)


def _read(root: Path, settings: DataSettings) -> Dataset:
    layout = next((one for one in LAYOUTS if one.name == settings.layout), None)
    if settings.tags:
        if settings.layout not in ("auto", "folder"):
            raise DataError(
                f"setting data.tags: layout {settings.layout} has tags of its own; leave out data.tags or data.layout"
            )
        layout = _TABLE_ELSEWHERE
    elif settings.layout == "folder":
        layout = next(
            one for one in LAYOUTS if one.name == "folder" and (one is LAYOUTS[-1] or one.fits(root, settings))
        )
    if layout is None:
        layout = recognise(root, settings)
    dataset = layout.read(root, settings)
    if not dataset.split("train"):
        raise DataError(f"{root}: there must be training images, found none (read as layout {layout.name})")
    paths = Counter(sample.image for sample in dataset.samples)
    twice = next((path for path, times in paths.items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{root}: image {twice} is listed more than once; list it once, in train or in validation")
    _check_names(dataset)
    return dataclasses.replace(dataset, samples=_with_unique_ids(dataset))


def recognise(root: Path, settings: DataSettings) -> Layout:
    """Return the layout of a data folder.

    Raises:
        DataError: with the list of known layouts, when none fits, or when a known folder or file is there but
            incomplete.
    """
    for layout in LAYOUTS:
        if layout is LAYOUTS[-1]:
            _refuse_incomplete(root)
        if layout.fits(root, settings):
            return layout
    known = "; ".join(dict.fromkeys(layout.known_by for layout in LAYOUTS))
    names = [path for path in sorted(os.listdir(root)) if not is_junk(path)]
    files = [name for name in names if (root / name).is_file()]
    images = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    others = [name for name in files if name not in images]
    held = [f"{len(images)} images"] * bool(images) + others[:3] + ["..."] * (len(others) > 3)
    found = f"; it holds {', '.join(held)}" if held else ""
    raise DataError(f"{root}: found no images in a known layout; looked for {known}{found}")


def _has_shards(root: Path) -> bool:
    # A tar next to folders of images is usually the archive that they were unpacked from.
    beside = [path.name.lower() for path in root.iterdir() if path.is_dir() and not is_junk(path.name)]
    return all(name in (*SPLIT_NAMES, "masks", "saliency") for name in beside) and bool(shard_files(root))


def _refuse_incomplete(root: Path) -> None:
    """Raise DataError if folders or files of a layout are there that would otherwise be taken for classes."""
    if (root / "JPEGImages").is_dir():
        raise DataError(
            f"{root}: has JPEGImages but no ImageSets; put the names of the training images into "
            "ImageSets/Segmentation/train.txt, one per line, or their tags into tags.csv"
        )
    if any(root.glob("*.parquet")) or any(root.glob("data/*.parquet")):
        raise DataError(
            f"{root}: holds Parquet files, which compress images; write them to a folder once with "
            "datasets.load_dataset(...).save_to_disk(FOLDER)"
        )
    if (root / "labelmap.txt").is_file():
        raise DataError(
            f"{root}: has labelmap.txt but not JPEGImages and ImageSets; export with images, or write the tags "
            "into tags.csv"
        )


def check_counts(dataset: Dataset, settings: DataSettings) -> None:
    """Raise DataError with every class that has fewer than `settings.min_images` training images."""
    counts = Counter(tag for sample in dataset.split("train") for tag in sample.tags)
    numbered = enumerate(dataset.classes, start=1)
    few = [f"{name} has {counts[number]}" for number, name in numbered if counts[number] < settings.min_images]
    if few:
        listed = f"{', '.join(few[:10])}{f' and {len(few) - 10} more classes' if len(few) > 10 else ''}"
        raise DataError(
            f"{dataset.root}: too few training images: {listed}, expected at least {settings.min_images} of each class "
            "(setting data.min-images); add photographs, merge classes with --data.rename, or lower --data.min-images"
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
        if len(sample.id) > _MAX_PART // 4 and (
            len(sample.id.encode()) > _MAX_ID or max(len(part.encode()) for part in sample.id.split("/")) > _MAX_PART
        ):
            raise DataError(
                f"{dataset.root}: image name {shown(sample.id)} must have at most {_MAX_PART} bytes in each folder and "
                f"{_MAX_ID} in all, because its mask is named like it; rename it"
            )


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
