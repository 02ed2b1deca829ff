"""Read images in one folder per class, also below folders of splits."""

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tagseg.data.companions import attach, companion_folders
from tagseg.data.folder import image_id, unread
from tagseg.data.gather import TaggedImage, gather
from tagseg.data.ignored import JUNK, ignored, is_junk, walk
from tagseg.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, inside
from tagseg.data.records import Dataset
from tagseg.data.tag_rows import SPLIT_NAMES, SPLITS, unique
from tagseg.settings.data import DataSettings

_NOT_PHOTOGRAPHS = re.compile(
    r"segmentation(class|object).*|imagesets|annotations?|ann|masks?|saliency|labels?|ground_?truth|gt|mask_.*",
    re.IGNORECASE,
)
"""Names of folders that hold masks and annotations."""


@dataclass(frozen=True)
class ClassFolders:
    """Folders of classes with their splits; `others` are folders beside them that are not used; `notes` say why."""

    folders: tuple[tuple[Path, str], ...]
    others: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def class_folders(root: Path, settings: DataSettings) -> ClassFolders:
    """Return the class folders of a data folder, also below folders of splits such as train, valid and test.

    A folder named like a split is one if it holds folders, and all others are splits or there is another split: a class
    may be called train. A single folder of folders, as archives have it, is passed through.
    """
    extra = companion_folders(root, settings)
    base, notes = root, []
    for _ in range(3):
        folders = _below(base, extra)
        only = folders[0] if len(folders) == 1 else None
        if only is None or only.name.lower() in SPLIT_NAMES or _has_images(only) or not _below(only, extra):
            break
        base = only
        if only.name != "images":
            notes.append(f"the data is read from the folder {base.relative_to(root).as_posix()}")
    masks = tuple(folder for folder in folders if _NOT_PHOTOGRAPHS.fullmatch(folder.name))
    folders = [folder for folder in folders if folder not in masks]
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES and not _has_images(folder)]
    others = [folder for folder in folders if folder not in splits and any(walk(folder))]
    kinds = {SPLITS[folder.name.lower()] for folder in splits}
    if splits and (not others or len(kinds) > 1 or "train" in kinds):
        inner = [(below, SPLITS[folder.name.lower()]) for folder in splits for below in _below(folder, extra)]
        return ClassFolders(tuple(inner), (*masks, *others), tuple(notes))
    return ClassFolders(tuple((folder, "train") for folder in folders), masks, tuple(notes))


def read_class_folders(root: Path, settings: DataSettings) -> Dataset:
    """Read one folder per class: the classes are those of `classes.txt` in its order, or else the sorted names.

    Raises:
        DataError: when an image is outside the folder, or a folder is missing in classes.txt.
    """
    found = class_folders(root, settings)
    images: list[TaggedImage] = []
    notes, junk, others, masks = list(found.notes), list[str](), list[str](), list[str]()
    for folder, split in found.folders:
        photographs, beside = _photographs(list(walk(folder, junk)), others)
        masks += beside
        if not photographs:
            notes.append(f"folder {folder.relative_to(root).as_posix()} has no images and is left out")
        name = unique([folder.name])
        for path in photographs:
            image = inside(root, Path(path), f"folder {folder}")
            images.append(TaggedImage(f"folder {folder}", image_id(root, image), image, name, split))
    known = [folder for folder, _ in found.folders]
    outside = list(walk(root, junk, (*known, *found.others, *companion_folders(root, settings))))
    loose, _ = _photographs(outside, others)
    unused = [path for folder in found.others for path in walk(folder)]
    records = (
        *ignored(root, "images outside the folders of classes", loose),
        *ignored(root, "files in folders that are not classes", unused, expected=True),
        *ignored(root, "masks beside photographs (NAME_mask) are not photographs", masks),
        *unread(root, others),
        *ignored(root, JUNK, junk, expected=True),
    )
    dataset = gather(root, "folder", images, notes)
    return attach(dataclasses.replace(dataset, ignored=(*dataset.ignored, *records)), root, settings)


def _photographs(files: Sequence[str], others: list[str]) -> tuple[list[str], list[str]]:
    """Return the photographs among files, and masks beside them (NAME_mask.png); images not read go to `others`."""
    images = [path for path in files if _is_image(path)]
    others += [path for path in files if path.lower().endswith(tuple(UNREAD_SUFFIXES))]
    stems = {os.path.splitext(path)[0] for path in images}
    photographs, masks = list[str](), list[str]()
    for path in images:
        name = os.path.splitext(path)[0]
        whole = re.sub(r"[-_]masks?$", "", name)
        (masks if whole != name and whole in stems else photographs).append(path)
    return photographs, masks


def _below(folder: Path, extra: Sequence[Path]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_junk(path.name) and path not in extra)


def _has_images(folder: Path) -> bool:
    return any(_is_image(entry.name) and not is_junk(entry.name) and entry.is_file() for entry in os.scandir(folder))


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)
