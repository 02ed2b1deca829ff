"""Reader for the PASCAL VOC devkit layout: JPEGImages, ImageSets, and tags from one of four places."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from xml.etree import ElementTree

import numpy as np

from tagseg.data.folder import attach, companion, read_rows, split_rows
from tagseg.data.images import IMAGE_SUFFIXES, find_image, read_mask_file
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.untrusted import is_file, read_bytes

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""VOC's classes in the order of their mask ids 1..20."""

TRAIN_LISTS = ("train_aug", "trainaug", "train")
"""Lists of training images, the preferred one first."""
_MASKS = "the masks"


@dataclass(frozen=True)
class ListLine:
    """A line of an image list: `where` names file and row, `numbers` are VOC class indices from 0."""

    where: str
    name: str
    numbers: tuple[int, ...]


def voc_root(root: Path) -> Path | None:
    """Return the folder that holds JPEGImages and ImageSets: `root`, or a year of the devkit below it."""
    for below in ("", "VOC2012", "VOC2007", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007"):
        if (root / below / "JPEGImages").is_dir() and (root / below / "ImageSets").is_dir():
            return root / below
    return None


def read_voc(root: Path, settings: DataSettings) -> Dataset:
    """Read a VOC devkit; tags come from class numbers in the list, tags.csv, Annotations, or else from the masks.

    Objects marked difficult count as tags. Classes are those tagged in train, in VOC's order; where there are names
    outside VOC's twenty they are sorted, and mask ids are 1..C.

    Raises:
        DataError: naming file and row, when a list, an image or an annotation is missing or wrong.
    """
    found = voc_root(root)
    if found is None:
        raise DataError(
            f"{root}: no VOC devkit, expected folders JPEGImages and ImageSets in it or in VOC2012 below it"
        )
    train_file = list_file(found, settings.train_list, TRAIN_LISTS, "data.train-list")
    if train_file is None:
        raise DataError(f"{found / 'ImageSets'}: no list of training images, expected {' or '.join(TRAIN_LISTS)}.txt")
    val_file = list_file(found, settings.val_list, ("val",), "data.val-list")
    train, val = read_list(train_file), read_list(val_file) if val_file is not None else []
    both = {line.name: line.where for line in train}
    for line in val:
        if line.name in both:
            raise DataError(f"{line.where}: {line.name} is a training image too ({both[line.name]})")
    masks = companion(found, settings.masks, "SegmentationClass", "data.masks")
    train_tags, source = _tags(found, train, masks)
    val_tags, _ = _tags(found, val, None)
    for line in train:
        if not train_tags.get(line.name):
            raise DataError(f"{line.where}: image {line.name} has no tags in {source}, expected at least one")
    tagged = {tag for tags in train_tags.values() for tag in tags}
    ours = tagged <= set(VOC_CLASSES)
    classes = tuple(name for name in VOC_CLASSES if name in tagged) if ours else tuple(sorted(tagged))
    unseen = sorted({tag for tags in val_tags.values() for tag in tags} - tagged)
    notes = ["tags taken from the masks: there is no other source of tags"] if source == _MASKS else []
    if unseen:
        notes.append(f"tags on validation images that no training image has are left out: {', '.join(unseen)}")
    official = None
    if train_file.name != "train.txt" and (found / "ImageSets/Segmentation/train.txt").is_file():
        official = {line.name for line in read_list(found / "ImageSets/Segmentation/train.txt")}
    samples = [
        *_samples(found, train, "train", train_tags, classes, official),
        *_samples(found, val, "val", val_tags, classes, None),
    ]
    ids = {VOC_CLASSES.index(name) + 1: number for number, name in enumerate(classes, start=1)} if ours else None
    return Dataset(found, "voc", classes, attach(samples, found, settings, "SegmentationClass"), ids, tuple(notes))


def _samples(
    root: Path,
    lines: Sequence[ListLine],
    split: Literal["train", "val"],
    tags: Mapping[str, tuple[str, ...]],
    classes: Sequence[str],
    official: set[str] | None,
) -> list[Sample]:
    samples = []
    for line in lines:
        image = find_image(root, (root / "JPEGImages",), line.name, line.where)
        numbers = tuple(sorted(classes.index(tag) + 1 for tag in tags.get(line.name, ()) if tag in classes))
        scored = official is None or line.name in official
        samples.append(Sample(line.name, image, numbers, split, scored=scored))
    return samples


def list_file(root: Path, given: str, names: Sequence[str], flag: str) -> Path | None:
    """Return the file of an image list of a devkit: the one `given` by the setting `flag`, else the first of `names`.

    Raises:
        DataError: when the given one is not there.
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
    """Read an image list: names, maybe with class numbers behind them.

    Raises:
        DataError: naming file and row, when it cannot be read, or a name stands there twice.
    """
    lines: dict[str, ListLine] = {}
    for number, text in enumerate(_text(file).split("\n"), start=1):
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
            raise DataError(f"{where}: image {name} is listed a second time, the first was {lines[name].where}")
        lines[name] = ListLine(where, name, tuple(map(int, cells[1:])))
    return list(lines.values())


def _tags(root: Path, lines: Sequence[ListLine], masks: Path | None) -> tuple[dict[str, tuple[str, ...]], str]:
    """Tags by image from the first source there is, and its name; `masks` is the last resort, where it is allowed."""
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
            raise DataError(f"{row.where}: image {row.image!r} is listed a second time")
        tags[name] = names
    return tags


def _tags_from_xml(file: Path) -> tuple[str, ...]:
    text = _text(file)
    # The parser expands entities, which only a document type can define; zeros mean UTF-16, where it would hide.
    if any(sign in text for sign in ("<!DOCTYPE", "<!ENTITY", "\0")):
        raise DataError(f"{file}: a document type or an entity, expected plain VOC XML in UTF-8 without them")
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{file}: no valid XML ({error})") from error
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


def _text(file: Path) -> str:
    try:
        return read_bytes(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}), expected UTF-8 text") from error
