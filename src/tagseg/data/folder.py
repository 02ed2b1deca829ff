"""Read folders of images whose tags are in files of any tool (tag_sources.py)."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from tagseg.data.companions import attach, companion_folders
from tagseg.data.gather import TaggedImage, gather
from tagseg.data.ignored import JUNK, ignored, walk
from tagseg.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from tagseg.data.locate import Sought, locate, refuse_missing
from tagseg.data.records import Dataset, Ignored
from tagseg.data.tag_rows import TagRow, split_rows
from tagseg.data.tag_sources import TABLE, find_source, split_places
from tagseg.data.tars import is_member
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

_PLACES = ("", "images", "data", "JPEGImages", "img")
"""Where images may be, relative to the folder of the tag file."""


def read_folder(root: Path, settings: DataSettings) -> Dataset:
    """Read a folder of images with a source of tags.

    The classes are those of `classes.txt` in its order, or else the sorted names. Rows of the same image are merged.

    Raises:
        DataError: with file and row, when an image is missing, in two splits or outside the folder, or its tags are
            unknown; or when there is no source of tags.
    """
    found = (TABLE, [(Path(settings.tags), "train")]) if settings.tags else find_source(root)
    if found is None:
        raise DataError(f"{root}: no file with tags, expected for example tags.csv")
    source, files = found
    notes: list[str] = []
    rows = [row for file, split in files for row in source.read(file, split, settings, notes)]
    if settings.tags:
        rows = [dataclasses.replace(row, folder=None) for row in rows]
    names = ", ".join(os.path.relpath(file, root) for file, _ in files[:3])
    if source.name != "tag file":
        notes.insert(0, f"tags are read from {source.name} ({names}{', ...' if len(files) > 3 else ''})")
    images, records = _images(root, rows, settings, source.partial)
    train = [image for image in images if image.split == "train"]
    if train and not any(image.tags for image in train):
        raise DataError(f"{root}: no training image has a tag in {names}; expected at least one tagged image")
    used = (image.image for image in images)
    skip = companion_folders(root, settings)
    records += unlisted(root, used, f"images without a row in {names}", skip, expected=bool(settings.tags))
    dataset = gather(root, "folder", images, notes)
    dataset = dataclasses.replace(dataset, ignored=(*dataset.ignored, *records))
    return attach(dataset, root, settings)


def unlisted(
    root: Path, used: Iterable[Path], reason: str, skip: Iterable[Path] = (), expected: bool = False
) -> tuple[Ignored, ...]:
    """Return the record of the images below `root` that are not among the `used` ones, and of junk, without `skip`."""
    known = {os.fspath(path) for path in used}
    junk: list[str] = []
    images, others = [], []
    for path in walk(root, junk, skip):
        if path.lower().endswith(IMAGE_SUFFIXES):
            if path not in known:
                images.append(path)
        elif path.lower().endswith(tuple(UNREAD_SUFFIXES)):
            others.append(path)
    return (
        *ignored(root, reason, images, expected),
        *unread(root, others),
        *ignored(root, JUNK, junk, expected=True),
    )


def unread(root: Path, paths: Sequence[str]) -> tuple[Ignored, ...]:
    """Return the record of images in formats that are not read, one entry per suffix."""
    by_suffix: dict[str, list[str]] = {}
    for path in paths:
        by_suffix.setdefault(os.path.splitext(path)[1].lower(), []).append(path)
    return tuple(
        record
        for suffix, group in sorted(by_suffix.items())
        for record in ignored(root, f"{suffix} files are not read{UNREAD_SUFFIXES[suffix]}", group)
    )


def _images(
    root: Path, rows: list[TagRow], settings: DataSettings, partial: bool
) -> tuple[list[TaggedImage], tuple[Ignored, ...]]:
    """Return the images that rows name, each once with all its tags."""
    places = [folder for folder, _ in split_places(root)]
    junk = [row.image for row in rows if PurePosixPath(row.image.replace("\\", "/")).name.startswith("._")]
    if junk:
        rows = [row for row in rows if not PurePosixPath(row.image.replace("\\", "/")).name.startswith("._")]
    tags = split_rows(rows, settings.min_score)
    searched: dict[Path | None, tuple[Path, ...]] = {}
    for row in rows:
        if row.folder not in searched:
            bases = dict.fromkeys([row.folder or root, root])
            searched[row.folder] = tuple(
                dict.fromkeys(
                    base / below for base in bases for below in _PLACES if not below or (base / below).is_dir()
                )
            ) + tuple(places)
    asked = [Sought(row.image, searched[row.folder], row.where) for row in rows if row.path is None]
    found = iter(locate(root, asked))
    paths = [row.path or next(found) for row in rows]
    # Test images are left out: they may be missing, and need no tags.
    if not partial:
        refuse_missing(
            Sought(row.image, searched[row.folder], row.where)
            for row, path in zip(rows, paths, strict=True)
            if path is None and row.split != "test"
        )
    images: dict[Path, TaggedImage] = {}
    absent, merged = [], []
    for row, path, names in zip(rows, paths, tags, strict=True):
        if path is None and row.split != "test":
            absent.append(row.image)
            continue
        path = path or root / row.image
        first = images.get(path)
        if first is None:
            images[path] = TaggedImage(row.where, _id(root, row, path), path, names, row.split)
            continue
        if first.split != row.split:
            raise DataError(
                f"{row.where}: image {row.image!r} is in {row.split}, but {first.where} has it in {first.split}"
            )
        if names and set(names) <= set(first.tags):
            merged.append(row.image)
        images[path] = dataclasses.replace(first, tags=tuple(dict.fromkeys((*first.tags, *names))))
    records = (
        *ignored(root, "rows of images that are not in this folder", absent, expected=True),
        *ignored(root, "rows that repeat the tags of an image are merged", merged),
        *ignored(root, "rows of files that macOS leaves behind (._NAME) are skipped", junk, expected=True),
    )
    return list(images.values()), records


def _id(root: Path, row: TagRow, path: Path) -> str:
    if not is_member(path):
        return image_id(root, path)
    folder = (row.folder or root).relative_to(root)
    return (folder / row.image).with_suffix("").as_posix()


def image_id(root: Path, image: Path) -> str:
    """Return the id of an image: its path below the data folder, or below images in it, without suffix."""
    below = image.relative_to(root).with_suffix("")
    parts = below.parts
    return PurePosixPath(*(parts[1:] if parts[0] == "images" else parts)).as_posix()
