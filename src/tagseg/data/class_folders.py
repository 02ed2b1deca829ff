"""Read images in one folder per class, also below folders of splits."""

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tagseg.data.companions import attach, companion_folders
from tagseg.data.folder import image_id, unread
from tagseg.data.gather import TaggedImage, gather
from tagseg.data.ignored import JUNK, ignored, is_junk, walk
from tagseg.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, inside
from tagseg.data.mask_values import NAME_FILES
from tagseg.data.records import Dataset
from tagseg.data.tag_rows import SPLIT_NAMES, SPLITS, split_of_folder, unique
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

_NOT_PHOTOGRAPHS = re.compile(
    r"segmentation(class|object).*|imagesets|annotations?|ann|masks?|saliency|labels?|ground_?truth|gt|mask_.*"
    r"|gt_?(fine|coarse)|(semantic|instance|panoptic)s?(_.*)?|disparity|depth",
    re.IGNORECASE,
)
"""Names of folders that hold masks and annotations."""

_KNOWN = (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)

_CONTAINERS = re.compile(
    r"images?(_?[0-9]+)?|leftimg8bit|rgb|imgs?|photos?|pictures?|data|dataset|frames?|files|raw|all|uploads?|jpe?gs?|pngs?",
    re.IGNORECASE,
)
"""Names of folders that hold images of every kind."""


@dataclass(frozen=True)
class ClassFolder:
    """A folder whose images show one class, and their split."""

    path: Path
    name: str
    split: str


@dataclass(frozen=True)
class ClassFolders:
    """Folders of classes with their splits; `others` are folders beside them that are not used; `notes` say why."""

    folders: tuple[ClassFolder, ...]
    others: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def class_folders(root: Path, settings: DataSettings) -> ClassFolders:
    """Return the class folders of a data folder, also below folders of splits such as train, valid and test.

    A folder named like a split is one if it holds folders, and all others are splits or there is another split: a class
    may be called train. A single folder of folders, as archives have it, is passed through. Splits may also be inside
    the folders of the classes.

    Raises:
        DataError: when the folders that hold the images are called like splits, or like nothing in particular.
    """
    extra = companion_folders(root, settings)
    base, folders, masks = _unwrapped(root, extra)
    notes = []
    if base != root and base != root / "images":
        notes.append(f"the data is read from the folder {base.relative_to(root).as_posix()}")
    named = _splits(folders)
    splits = [(folder, split) for folder, split in named if not _has_images(folder)]
    inside = [folder for folder, _ in splits]
    others = [folder for folder in folders if folder not in inside and any(walk(folder))]
    kinds = {split for _, split in splits}
    if splits and (not others or len(kinds) > 1 or "train" in kinds):
        found = []
        for folder, split in splits:
            _, below, beside = _unwrapped(folder, extra)
            masks += beside
            found += [ClassFolder(one, one.name, split) for one in below]
        inner = {one.name for one in found}
        if len(inner) == 1:
            _refuse_untagged(root, [one.path for one in found], masks)
        return ClassFolders(tuple(found), (*masks, *others), tuple(notes))
    _refuse_untagged(root, others, masks)
    found = [one for folder in folders for one in _class_folder(folder, extra)]
    nested = [one for one in found if one.path.name == one.name and not _has_images(one.path)]
    mixed = [one.name for one in nested if _below(one.path, extra)]
    if mixed:
        listed = ", ".join(mixed[:3]) + (", ..." if len(mixed) > 3 else "")
        notes.append(f"folders inside the folder of a class belong to that class (in {listed})")
    return ClassFolders(tuple(found), tuple(masks), tuple(notes))


def _splits(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return the folders that are splits: by their name, or because it differs from another in the split alone."""
    words = {folder: [word for word in re.split(r"[\W_]+", folder.name.lower()) if word] for folder in folders}
    kinds: dict[tuple[str, ...], dict[Path, str]] = defaultdict(dict)
    for folder, parts in words.items():
        hits = [word for word in parts if word in SPLIT_NAMES]
        if len(hits) == 1:
            kinds[tuple("" if word in SPLIT_NAMES else word for word in parts)][folder] = SPLITS[hits[0]]
    siblings = {
        folder: split for group in kinds.values() if len(set(group.values())) > 1 for folder, split in group.items()
    }
    found = [(folder, split_of_folder(folder.name) or siblings.get(folder)) for folder in folders]
    return [(folder, split) for folder, split in found if split is not None]


def _unwrapped(folder: Path, extra: Sequence[Path]) -> tuple[Path, list[Path], list[Path]]:
    """Return the folder that holds the folders of images, those folders, and the folders of masks on the way."""
    masks: list[Path] = []
    for _ in range(4):
        below = _below(folder, extra)
        masks += [one for one in below if _NOT_PHOTOGRAPHS.fullmatch(one.name)]
        folders = [one for one in below if one not in masks]
        only = folders[0] if len(folders) == 1 else None
        # A split alone is passed through if the folder around it is called like it (training_set/training_set).
        around = split_of_folder(folder.name)
        if only is None or _has_images(only) or not _below(only, extra):
            break
        if split_of_folder(only.name) not in (None, around):
            break
        folder = only
    return folder, folders, masks


def _class_folder(folder: Path, extra: Sequence[Path]) -> list[ClassFolder]:
    """Return the folder of a class, or the folders of splits in it if it holds nothing else."""
    below = [(one, split_of_folder(one.name)) for one in _below(folder, extra)]
    if below and not _has_images(folder) and len({split for _, split in below}) > 1:
        inner = [ClassFolder(one, folder.name, split) for one, split in below if split is not None]
        if len(inner) == len(below):
            return inner
    return [ClassFolder(folder, folder.name, "train")]


def _refuse_untagged(root: Path, folders: Sequence[Path], masks: Sequence[Path]) -> None:
    """Raise DataError if images are in folders whose names cannot be tags: splits, or a single one called images."""
    named = _splits(folders)
    splits = [folder for folder, _ in named]
    if len(splits) < len(folders) and len({split for _, split in named}) < 2:
        if len({folder.name for folder in folders}) != 1 or not _CONTAINERS.fullmatch(folders[0].name):
            return
        splits = list(folders)
    if not splits:
        return
    names = " and ".join(folder.relative_to(root).as_posix() for folder in splits)
    files = [path for folder in (*splits, *masks) for path in walk(folder) if not _is_image(path)]
    beside = ", ".join(os.path.relpath(path, root) for path in files[:3])
    raise DataError(
        f"{root}: {names} must hold one folder per class, or a file must give the tags; found images without tags"
        f"{f', and files that are not known to give tags: {beside}' if beside else ''}. Write the tags into "
        f"{root / 'tags.csv'} (columns image and tags)"
    )


def read_class_folders(root: Path, settings: DataSettings) -> Dataset:
    """Read one folder per class: the classes are those of `classes.txt` in its order, or else the sorted names.

    Raises:
        DataError: when an image is outside the folder, or a folder is missing in classes.txt.
    """
    found = class_folders(root, settings)
    images: list[TaggedImage] = []
    notes, junk, others, masks = list(found.notes), list[str](), list[str](), list[str]()
    for one in found.folders:
        folder = one.path
        photographs, beside = _photographs(list(walk(folder, junk)), others)
        masks += beside
        if not photographs:
            notes.append(f"folder {folder.relative_to(root).as_posix()} has no images and is left out")
        name = unique([one.name])
        for path in photographs:
            image = inside(root, Path(path), f"folder {folder}")
            images.append(TaggedImage(f"folder {folder}", image_id(root, image), image, name, one.split))
    known = [one.path for one in found.folders]
    outside = list(walk(root, junk, (*known, *found.others, *companion_folders(root, settings))))
    loose, _ = _photographs(outside, others)
    unused = [path for folder in found.others for path in walk(folder)]
    inner = [path for one in found.folders for path in walk(one.path)]
    rest = [path for path in (*inner, *outside) if not path.lower().endswith(_KNOWN)]
    rest = [path for path in rest if os.path.basename(path) not in ("classes.txt", *NAME_FILES)]
    records = (
        *ignored(root, "images outside the folders of classes", loose),
        *ignored(root, "files in folders that are not classes", unused, expected=True),
        *ignored(root, "masks beside photographs (NAME_mask) are not photographs", masks),
        *unread(root, others),
        *ignored(root, "other files are not images", rest, expected=True),
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
