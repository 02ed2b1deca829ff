"""Read the layout of the PASCAL VOC devkit: JPEGImages, ImageSets, and tags from one of five sources."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tagseg.data.companions import attach, companion
from tagseg.data.folder import unlisted
from tagseg.data.ignored import ignored
from tagseg.data.locate import Sought, locate, refuse_missing
from tagseg.data.mask_values import VOID_CODE, MaskNames, mask_names, meaning, voc_colour
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.data.tag_exports import xml_tags
from tagseg.data.tag_rows import split_rows, unique
from tagseg.data.tag_tables import read_table
from tagseg.data.true_masks import read_mask_pixels
from tagseg.data.voc_lists import (
    TRAIN_LISTS,
    VAL_LISTS,
    ListLine,
    image_stem,
    list_file,
    other_lists,
    presence,
    read_list,
)
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.untrusted import is_file

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""VOC's classes in the order of their mask ids, 1..20."""

_OFFICIAL = MaskNames("VOC", {0: "background", **dict(enumerate(VOC_CLASSES, 1)), VOID: "void"}, {})
_MASKS = "the masks"


@dataclass(frozen=True)
class _Tagged:
    """Tags by image, and their source; `unknown` are listed images that the source does not have."""

    tags: Mapping[str, tuple[str, ...]]
    source: str
    unknown: tuple[ListLine, ...] = ()


def voc_root(root: Path) -> Path | None:
    """Return the folder with JPEGImages and ImageSets: `root`, or the devkit of one year below it."""
    kits = devkits(root)
    years = [root / year for year in ("", "VOC2012", "VOC2007", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007")]
    return next((kit for kit in years if kit in kits), kits[0] if len(kits) == 1 else None)


def devkits(root: Path) -> list[Path]:
    """Return all folders with JPEGImages and ImageSets: `root`, those in it, and those in VOCdevkit."""
    if not root.is_dir():
        return []
    inside = [folder for place in (root, root / "VOCdevkit") if place.is_dir() for folder in sorted(place.iterdir())]
    return [kit for kit in (root, *inside) if (kit / "JPEGImages").is_dir() and (kit / "ImageSets").is_dir()]


def read_voc(root: Path, settings: DataSettings) -> Dataset:
    """Read a VOC devkit; tags come from class numbers in the list, tags.csv, Annotations, lists about one class each
    (cat_train.txt) or, failing these, the masks.

    Objects marked difficult count as tags. Classes are the tags of the training images: in VOC's order and with VOC's
    mask ids if all are VOC's, or in the order of labelmap.txt or class_names.txt, or else sorted with mask ids 1..C.

    Raises:
        DataError: with file and row, when a list, an image or an annotation is missing or wrong, or numbers have no
            names.
    """
    found = voc_root(root)
    if found is None:
        raise DataError(
            f"{root}: not a VOC devkit, expected folders JPEGImages and ImageSets in it or in VOC2012 below it"
        )
    train_file = list_file(found, settings.train_list, TRAIN_LISTS, "data.train-list")
    if train_file is None:
        got = ", ".join(other_lists(found)[:10])
        raise DataError(
            f"{found / 'ImageSets'}: no list of training images, expected {' or '.join(TRAIN_LISTS[:3])}.txt in "
            f"Segmentation or Main{f'; found {got} (setting data.train-list)' if got else ''}"
        )
    val_file = list_file(found, settings.val_list, VAL_LISTS, "data.val-list")
    train, val = read_list(train_file), read_list(val_file) if val_file is not None else []
    train_rows = {line.name: line.where for line in train}
    for line in val:
        if line.name in train_rows:
            raise DataError(f"{line.where}: {line.name} is also a training image ({train_rows[line.name]})")
    masks = companion(found, settings.masks, _mask_folder(found), "data.masks")
    names = mask_names(masks, found, settings) or (_OFFICIAL if _is_official(found, (*train, *val)) else None)
    tagged = _tags(found, train_file, train, masks, names)
    if tagged.unknown:
        first, several = tagged.unknown[0], ", ".join(line.name for line in tagged.unknown[:10])
        raise DataError(
            f"{first.where}: image {first.name} has no tags in {tagged.source}, expected an entry for every training "
            f"image ({len(tagged.unknown)} have none: {several})"
        )
    if not any(tagged.tags.values()):
        raise DataError(f"{train_file}: no training image has tags in {tagged.source}, expected at least one")
    val_tags = _tags(found, val_file, val, None, names).tags if val_file is not None else {}
    official = found / "ImageSets/Segmentation/train.txt"
    scored = None
    if train_file.name != official.name and is_file(official):
        scored = {line.name for line in read_list(official)}
    dataset = _dataset(found, settings, names, (train, val), tagged, val_tags, scored)
    others = ignored(root, "other devkits are not used", [kit for kit in devkits(root) if kit != found])
    return dataclasses.replace(dataset, ignored=(*dataset.ignored, *others))


def _dataset(
    root: Path,
    settings: DataSettings,
    names: MaskNames | None,
    lists: tuple[Sequence[ListLine], Sequence[ListLine]],
    tagged: _Tagged,
    val_tags: Mapping[str, tuple[str, ...]],
    scored: set[str] | None,
) -> Dataset:
    train, val = lists
    used = {tag for tags in tagged.tags.values() for tag in tags}
    official = used <= set(VOC_CLASSES) and (names is None or names is _OFFICIAL)
    order = VOC_CLASSES if official else names.classes() if names is not None and used <= set(names.classes()) else ()
    classes = tuple(name for name in order if name in used) if order else tuple(sorted(used))
    unseen = sorted({tag for tags in val_tags.values() for tag in tags} - used)
    notes = []
    if tagged.source == _MASKS:
        notes.append("tags are taken from the masks: there is no other source of tags")
    if unseen:
        notes.append(f"tags on validation images that no training image has are left out: {', '.join(unseen)}")
    samples = (
        *_samples(root, train, "train", tagged.tags, classes, scored),
        *_samples(root, val, "val", val_tags, classes, None),
    )
    ids = {VOC_CLASSES.index(name) + 1: number for number, name in enumerate(classes, 1)} if official else None
    dataset = attach(Dataset(root, "voc", classes, samples, ids, tuple(notes)), root, settings, _mask_folder(root))
    lost = [line.mask for line in (*train, *val) if line.mask and _listed_mask(root, line) is None]
    images = (sample.image for sample in samples)
    records = (
        *unlisted(root / "JPEGImages", images, "images in JPEGImages are in no list that is used", expected=True),
        *ignored(root, "masks in the lists do not exist", lost),
    )
    return dataclasses.replace(dataset, ignored=(*dataset.ignored, *records))


def _mask_folder(root: Path) -> str:
    """Return the name of the folder of masks: LabelMe's has PNG in its name where SegmentationClass holds arrays."""
    names = ("SegmentationClass", "SegmentationClassPNG", "SegmentationClassAug")
    return next((name for name in names if any((root / name).glob("*.png"))), names[0])


def _samples(
    root: Path,
    lines: Sequence[ListLine],
    split: Literal["train", "val"],
    tags: Mapping[str, tuple[str, ...]],
    classes: Sequence[str],
    scored: set[str] | None,
) -> list[Sample]:
    wanted = [Sought(line.name, (root / "JPEGImages",), line.where) for line in lines]
    images = locate(root, wanted)
    refuse_missing(one for one, image in zip(wanted, images, strict=True) if image is None)
    samples = []
    for line, image in zip(lines, images, strict=True):
        assert image is not None
        numbers = tuple(sorted(classes.index(tag) + 1 for tag in tags.get(line.name, ()) if tag in classes))
        mask = _listed_mask(root, line) if line.mask else None
        samples.append(Sample(line.name, image, numbers, split, mask, scored=scored is None or line.name in scored))
    return samples


def _listed_mask(root: Path, line: ListLine) -> Path | None:
    """Return the mask that a list names, such as /SegmentationClassAug/NAME.png, if it is in the devkit."""
    mask = root / line.mask.replace("\\", "/").lstrip("/")
    return mask if is_file(mask) and mask.resolve().is_relative_to(root.resolve()) else None


def _is_official(root: Path, lines: Sequence[ListLine]) -> bool:
    """Tell whether the lists are VOC's own: by the names of its images, or by a list for each of its classes."""
    named = all(re.fullmatch(r"20[01][0-9]_[0-9]{6}", line.name) for line in lines)
    return (named and bool(lines)) or any((root / "ImageSets/Main").glob("aeroplane_*.txt"))


def _tags(root: Path, file: Path, lines: Sequence[ListLine], masks: Path | None, names: MaskNames | None) -> _Tagged:
    """Return the tags by image from the first source that exists; `masks` (None: not used) come last."""
    if any(line.present is not None for line in lines):
        about = file.stem.rpartition("_")[0] or file.stem
        return _Tagged({line.name: (about,) if line.present else () for line in lines}, "the list")
    if any(line.numbers for line in lines):
        return _Tagged({line.name: _named(line, names) for line in lines}, "the list")
    if (root / "tags.csv").is_file():
        tags: dict[str, tuple[str, ...]] = {}
        rows = read_table(root / "tags.csv")
        for row, found in zip(rows, split_rows(rows), strict=True):
            name = image_stem(row.image)
            tags[name] = unique((*tags.get(name, ()), *found))
        return _Tagged(tags, "tags.csv", tuple(line for line in lines if line.name not in tags))
    if (root / "Annotations").is_dir() and any((root / "Annotations").iterdir()):
        files = {line.name: root / "Annotations" / f"{line.name}.xml" for line in lines}
        tags = {name: xml_tags(file) for name, file in files.items() if is_file(file)}
        return _Tagged(tags, "Annotations", tuple(line for line in lines if line.name not in tags))
    present = presence(root, file)
    if present:
        tags = {name: unique(found) for name, found in present.items()}
        return _Tagged(tags, f"the lists *_{file.name}", tuple(line for line in lines if line.name not in tags))
    if masks is not None:
        return _Tagged({line.name: _tags_from_mask(root, masks, line, names) for line in lines}, _MASKS)
    return _Tagged({}, "the list, tags.csv, Annotations or masks", tuple(lines))


def _named(line: ListLine, names: MaskNames | None) -> tuple[str, ...]:
    """Return the names of the class numbers on a line, which count from 0 without background."""
    if not line.numbers:
        return ()
    classes = names.classes() if names is not None else ()
    wrong = [number for number in line.numbers if number >= len(classes)]
    if not classes:
        raise DataError(
            f"{line.where}: class number {line.numbers[0]}, but nothing says which class that is: put class_names.txt "
            "or labelmap.txt beside JPEGImages (VOC's names are only used with VOC's own lists)"
        )
    if wrong:
        raise DataError(
            f"{line.where}: class number {str(wrong[0])!r}, expected 0 ({classes[0]}) to {len(classes) - 1} "
            f"({classes[-1]})"
        )
    return unique(classes[number] for number in line.numbers)


def _tags_from_mask(root: Path, folder: Path, line: ListLine, names: MaskNames | None) -> tuple[str, ...]:
    file = (_listed_mask(root, line) if line.mask else None) or folder / f"{line.name}.png"
    if not is_file(file):
        raise DataError(f"{line.where}: no tags, expected some in the list, tags.csv, Annotations or the mask {file}")
    pixels = read_mask_pixels(file)
    if pixels.colours is not None:
        by_colour = {} if names is None else names.colours or {_voc_code(v): name for v, name in names.values.items()}
        colours = [int(colour) for colour in np.unique(pixels.colours)]
        known = (names is not None and names.colours) and all(colour in by_colour for colour in colours)
        if known or pixels.values is None:
            return _tag_names(file, colours, by_colour, colours=True)
    assert pixels.values is not None
    return _tag_names(file, np.unique(pixels.values).tolist(), {} if names is None else names.values, colours=False)


def _tag_names(file: Path, codes: Sequence[int], known: Mapping[int, str], colours: bool) -> tuple[str, ...]:
    usual = {0: "background", VOID_CODE if colours else VOID: "void"}
    named = {**usual, **known}
    unknown = [f"#{code:06x}" if colours else str(code) for code in codes if code not in named]
    if unknown and not known:
        raise DataError(
            f"{file}: holds {'colours' if colours else 'ids'} {', '.join(unknown[:12])}, but nothing says which "
            "classes those are: put class_names.txt or labelmap.txt beside the masks, or give --data.mask-values, "
            "such as 1=cat,2=dog (VOC's names are only used with VOC's own lists)"
        )
    if unknown:
        shown = ", ".join(f"{code:#08x}".replace("0x", "#") if colours else str(code) for code in sorted(named)[:30])
        raise DataError(f"{file}: unknown ids {', '.join(unknown[:12])} in the mask, expected {shown}")
    names = [named[code] for code in codes]
    return unique(name for name in names if meaning(name, ()) is None)


def _voc_code(value: int) -> int:
    return VOID_CODE if value == VOID else voc_colour(value)
