"""Read the layout of the PASCAL VOC devkit: JPEGImages, ImageSets, and tags from one of four sources."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from xml.etree import ElementTree

import numpy as np

from tagseg.data.folder import attach, companion, read_rows, split_rows
from tagseg.data.gather import read_text
from tagseg.data.images import IMAGE_SUFFIXES, find_image, read_mask_file
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.untrusted import is_file

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""VOC's classes in the order of their mask ids, 1..20."""

TRAIN_LISTS = ("train_aug", "trainaug", "train")
"""Names of lists of training images, the preferred one first."""
_MASKS = "the masks"


@dataclass(frozen=True)
class ListLine:
    """A line of an image list: `where` is its file and row, `numbers` are VOC class indices from 0."""

    where: str
    name: str
    numbers: tuple[int, ...]


def voc_root(root: Path) -> Path | None:
    """Return the folder with JPEGImages and ImageSets: `root`, or the devkit of one year below it."""
    for below in ("", "VOC2012", "VOC2007", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007"):
        if (root / below / "JPEGImages").is_dir() and (root / below / "ImageSets").is_dir():
            return root / below
    return None


def read_voc(root: Path, settings: DataSettings) -> Dataset:
    """Read a VOC devkit; tags come from class numbers in the list, tags.csv, Annotations or, failing these, the masks.

    Objects marked difficult count as tags. The classes are the tags of the training images, in VOC's order; if one is
    not among VOC's twenty, they are sorted by name and mask ids are 1..C.

    Raises:
        DataError: with file and row, when a list, an image or an annotation is missing or wrong.
    """
    found = voc_root(root)
    if found is None:
        raise DataError(
            f"{root}: not a VOC devkit, expected folders JPEGImages and ImageSets in it or in VOC2012 below it"
        )
    train_file = list_file(found, settings.train_list, TRAIN_LISTS, "data.train-list")
    if train_file is None:
        raise DataError(f"{found / 'ImageSets'}: no list of training images, expected {' or '.join(TRAIN_LISTS)}.txt")
    val_file = list_file(found, settings.val_list, ("val",), "data.val-list")
    train, val = read_list(train_file), read_list(val_file) if val_file is not None else []
    train_rows = {line.name: line.where for line in train}
    for line in val:
        if line.name in train_rows:
            raise DataError(f"{line.where}: {line.name} is also a training image ({train_rows[line.name]})")
    masks = companion(found, settings.masks, "SegmentationClass", "data.masks")
    train_tags, source = _tags(found, train, masks)
    val_tags, _ = _tags(found, val, None)
    for line in train:
        if not train_tags.get(line.name):
            raise DataError(f"{line.where}: image {line.name} has no tags in {source}, expected at least one")
    tagged = {tag for tags in train_tags.values() for tag in tags}
    official_names = tagged <= set(VOC_CLASSES)
    classes = tuple(name for name in VOC_CLASSES if name in tagged) if official_names else tuple(sorted(tagged))
    unseen = sorted({tag for tags in val_tags.values() for tag in tags} - tagged)
    notes = ["tags are taken from the masks: there is no other source of tags"] if source == _MASKS else []
    if unseen:
        notes.append(f"tags on validation images that no training image has are left out: {', '.join(unseen)}")
    scored = None
    if train_file.name != "train.txt" and (found / "ImageSets/Segmentation/train.txt").is_file():
        scored = {line.name for line in read_list(found / "ImageSets/Segmentation/train.txt")}
    samples = [
        *_samples(found, train, "train", train_tags, classes, scored),
        *_samples(found, val, "val", val_tags, classes, None),
    ]
    numbered = enumerate(classes, start=1)
    ids = {VOC_CLASSES.index(name) + 1: number for number, name in numbered} if official_names else None
    return Dataset(found, "voc", classes, attach(samples, found, settings, "SegmentationClass"), ids, tuple(notes))


def _samples(
    root: Path,
    lines: Sequence[ListLine],
    split: Literal["train", "val"],
    tags: Mapping[str, tuple[str, ...]],
    classes: Sequence[str],
    scored: set[str] | None,
) -> list[Sample]:
    samples = []
    for line in lines:
        image = find_image(root, (root / "JPEGImages",), line.name, line.where)
        numbers = tuple(sorted(classes.index(tag) + 1 for tag in tags.get(line.name, ()) if tag in classes))
        samples.append(Sample(line.name, image, numbers, split, scored=scored is None or line.name in scored))
    return samples


def list_file(root: Path, given: str, names: Sequence[str], flag: str) -> Path | None:
    """Return the file of a devkit's image list: the one `given` by the setting `flag`, or else the first of `names`.

    Raises:
        DataError: when the given list does not exist.
    """
    folders = (root / "ImageSets/Segmentation", root / "ImageSets/Main")
    for folder in folders:
        for name in (given,) if given else names:
            file = folder / f"{name.removesuffix('.txt')}.txt"
            if is_file(file):
                return file
    if given:
        looked = " or ".join(str(folder) for folder in folders)
        raise DataError(f"setting {flag}: no list {given!r}, expected {given.removesuffix('.txt')}.txt in {looked}")
    return None


def read_list(file: Path) -> list[ListLine]:
    """Read an image list: one name per line, optionally followed by class numbers.

    Raises:
        DataError: with file and row, when the list cannot be read or has a name twice.
    """
    lines: dict[str, ListLine] = {}
    for number, text in enumerate(read_text(file).split("\n"), start=1):
        cells = text.split()
        if not cells:
            continue
        where, name = f"{file}, row {number}", _stem(cells[0])
        wrong = [cell for cell in cells[1:] if not re.fullmatch("[0-9]{1,2}", cell) or int(cell) >= len(VOC_CLASSES)]
        if wrong:
            raise DataError(
                f"{where}: class number {wrong[0]!r}, expected 0 ({VOC_CLASSES[0]}) to 19 ({VOC_CLASSES[-1]})"
            )
        if name in lines:
            raise DataError(f"{where}: image {name} is listed twice, first in {lines[name].where}")
        lines[name] = ListLine(where, name, tuple(map(int, cells[1:])))
    return list(lines.values())


def _tags(root: Path, lines: Sequence[ListLine], masks: Path | None) -> tuple[dict[str, tuple[str, ...]], str]:
    """Return the tags by image from the first source that exists, and its name; `masks` (None: not used) come last."""
    if any(line.numbers for line in lines):
        return {line.name: tuple(VOC_CLASSES[number] for number in line.numbers) for line in lines}, "the list"
    if (root / "tags.csv").is_file():
        return _tags_from_csv(root / "tags.csv"), "tags.csv"
    if (root / "Annotations").is_dir():
        files = {line.name: root / "Annotations" / f"{line.name}.xml" for line in lines}
        return {name: _tags_from_xml(file) for name, file in files.items() if is_file(file)}, "Annotations"
    if masks is not None:
        return {line.name: _tags_from_mask(masks / f"{line.name}.png", line.where) for line in lines}, _MASKS
    return {}, "the list, tags.csv, Annotations or masks"


def _tags_from_csv(file: Path) -> dict[str, tuple[str, ...]]:
    rows = read_rows(file)
    tags: dict[str, tuple[str, ...]] = {}
    for row, names in zip(rows, split_rows(rows), strict=True):
        name = _stem(row.image)
        if name in tags:
            raise DataError(f"{row.where}: image {row.image!r} is listed twice")
        tags[name] = names
    return tags


def _tags_from_xml(file: Path) -> tuple[str, ...]:
    text = read_text(file)
    # The parser expands entities, which only a document type can define. UTF-16, which has zeros, could hide one.
    if any(mark in text for mark in ("<!DOCTYPE", "<!ENTITY", "\0")):
        raise DataError(f"{file}: has a document type or an entity, expected plain VOC XML in UTF-8 without them")
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{file}: not valid XML ({error})") from error
    names = ((entry.findtext("name") or "").strip() for entry in tree.iter("object"))
    return tuple(dict.fromkeys(name for name in names if name))


def _tags_from_mask(file: Path, where: str) -> tuple[str, ...]:
    if not is_file(file):
        raise DataError(f"{where}: no tags, expected some in the list, tags.csv, Annotations or the mask {file}")
    ids = [int(value) for value in np.unique(read_mask_file(file)) if value not in (0, VOID)]
    unknown = [value for value in ids if value > len(VOC_CLASSES)]
    if unknown:
        raise DataError(
            f"{file}: unknown ids {', '.join(map(str, unknown))} in the mask, expected VOC's 0 to 20 or 255"
        )
    return tuple(VOC_CLASSES[value - 1] for value in ids)


def _stem(name: str) -> str:
    name = name.replace("\\", "/").removeprefix("./").removeprefix("JPEGImages/")
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name
