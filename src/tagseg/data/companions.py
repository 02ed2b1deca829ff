"""Find the true masks and saliency maps of images: files of the same name in a folder beside the images."""

import dataclasses
import os
from collections import Counter
from pathlib import Path, PurePosixPath

from tagseg.data.ignored import ignored, walk
from tagseg.data.mask_values import NAME_FILES, mask_code, mask_names
from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.untrusted import is_file

_MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg", ".PNG", ".JPG")
_SALIENCY_SUFFIXES = (".png", ".jpg", ".jpeg")
_ENDINGS = ("", "_mask", "-mask", "_masks", "_seg", "_segmentation", "_label", "_labels", "_gt", "_labelIds")
"""What tools write after the image's name in the name of its mask."""


def companion(root: Path, given: str, default: str, flag: str) -> Path | None:
    """Return the folder of masks or saliency maps: `given` (below `root`, or a path), or else `default` if it exists.

    Raises:
        DataError: when `given` is not an existing folder.
    """
    if not given:
        return root / default if default and (root / default).is_dir() else None
    for folder in (root / given, Path(given)):
        if os.path.isdir(folder):  # Path.is_dir raises for names that no folder can have
            return folder
    raise DataError(f"setting {flag}: {given!r} is not a folder, expected one below {root} or a path to one")


def companion_folders(root: Path, settings: DataSettings, masks: str = "masks") -> tuple[Path, ...]:
    """Return the folders of masks and saliency maps of a data folder, which hold no photographs.

    Raises:
        DataError: when a folder in the settings does not exist.
    """
    found = (
        companion(root, settings.masks, masks, "data.masks"),
        companion(root, settings.saliency, "saliency", "data.saliency"),
    )
    return tuple(folder for folder in found if folder is not None)


def attach(dataset: Dataset, root: Path, settings: DataSettings, masks: str = "masks") -> Dataset:
    """Return the data set with masks and saliency maps, which are found by path or, if unique, by file name.

    `masks` is the folder of masks if the settings do not name one ("": no folder). Masks that fit no image are ignored.

    Raises:
        DataError: when a folder in the settings does not exist, or no mask in the named folder fits an image.
    """
    mask_folder = companion(root, settings.masks, masks, "data.masks")
    saliency_folder = companion(root, settings.saliency, "saliency", "data.saliency")
    if mask_folder is not None or saliency_folder is not None:
        dataset = dataclasses.replace(dataset, samples=with_files(dataset, root, mask_folder, saliency_folder))
    if not any(isinstance(sample.mask, Path) for sample in dataset.samples):
        return dataset if mask_folder is None else _without_unused(dataset, root, mask_folder, settings, masks)
    names = mask_names(mask_folder, root, settings)
    if names is not None:
        code = mask_code(names, dataset.classes)
        dataset = dataclasses.replace(
            dataset, mask_ids=code.values or dataset.mask_ids, mask_colours=code.colours or None
        )
    return dataset if mask_folder is None else _without_unused(dataset, root, mask_folder, settings, masks)


def with_files(dataset: Dataset, root: Path, masks: Path | None, saliency: Path | None) -> tuple[Sample, ...]:
    """Return the samples of a data set with the masks and saliency maps in two folders that are named like them."""
    stems = Counter(PurePosixPath(sample.id).name for sample in dataset.samples)

    def find(folder: Path | None, sample: Sample, suffixes: tuple[str, ...], endings: tuple[str, ...]) -> Path | None:
        if folder is None:
            return None
        stem = PurePosixPath(sample.id).name
        below = sample.image.relative_to(root).with_suffix("").as_posix() if sample.image.is_relative_to(root) else stem
        names = dict.fromkeys((sample.id, below, stem) if stems[stem] == 1 else (sample.id, below))
        paths = (folder / f"{name}{end}{suffix}" for end in endings for name in names for suffix in suffixes)
        return next((path for path in paths if is_file(path)), None)

    return tuple(
        dataclasses.replace(
            sample,
            mask=find(masks, sample, _MASK_SUFFIXES, _ENDINGS) or sample.mask,
            saliency=find(saliency, sample, _SALIENCY_SUFFIXES, ("",)) or sample.saliency,
        )
        for sample in dataset.samples
    )


def _without_unused(dataset: Dataset, root: Path, folder: Path, settings: DataSettings, default: str) -> Dataset:
    """Return the data set with a record of the masks in a folder that fit no image."""
    used = {os.fspath(sample.mask) for sample in dataset.samples if isinstance(sample.mask, Path)}
    found = list(walk(folder))
    files = [path for path in found if path.endswith(_MASK_SUFFIXES)]
    about = (*NAME_FILES, "classes.txt")
    others = [path for path in found if not path.endswith(_MASK_SUFFIXES) and os.path.basename(path) not in about]
    unused = [path for path in files if path not in used]
    if settings.masks and unused and len(unused) == len(files):
        example = next((sample.id for sample in dataset.samples), "NAME")
        raise DataError(
            f"{folder}: no mask fits an image: it holds {os.path.relpath(unused[0], folder)}, expected names like "
            f"{example}.png (setting data.masks)"
        )
    where = os.path.relpath(folder, root) if folder.is_relative_to(root) else str(folder)
    expected = bool(used) and default != "masks"
    records = (
        *ignored(folder, f"masks in {where} fit no image", unused, expected),
        *ignored(folder, f"files in {where} are not masks; masks are PNGs or other lossless images", others, expected),
    )
    return dataclasses.replace(dataset, ignored=(*dataset.ignored, *records))
