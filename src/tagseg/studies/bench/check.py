"""Check a data folder against a protocol before training: counts, missing files, fingerprints."""

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagseg.data.coco import read_instances
from tagseg.data.read import read_dataset
from tagseg.data.records import Dataset
from tagseg.data.voc import voc_root
from tagseg.data.voc_lists import TRAIN_LISTS, list_file, read_list
from tagseg.errors import DataError
from tagseg.settings.settings import Settings
from tagseg.studies.bench.protocols import Protocol

_NAMED = 5
"""Number of missing files that are named; the others are counted."""


@dataclass(frozen=True)
class ImageList:
    """A list of images in the data: the number of its images, the expected number, and the list's fingerprint."""

    name: str
    images: int
    expected: int
    md5: str


@dataclass(frozen=True)
class DataCheck:
    """The comparison of a data folder with a protocol.

    faults: what is wrong, one line each. notes: what else is worth knowing. test: names of the test images, if the data
    has them.
    """

    root: Path
    protocol: Protocol
    lists: tuple[ImageList, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    test: tuple[str, ...] = ()

    def table(self) -> str:
        """Return the findings as Markdown."""
        rows = [f"{self.root} for {self.protocol.name}", "", "| list | images | expected | md5 of the sorted names |"]
        rows.append("|---|---:|---:|---|")
        rows += [f"| {one.name} | {one.images:,} | {one.expected:,} | `{one.md5}` |" for one in self.lists]
        rows += ["", *(f"- wrong: {fault}" for fault in self.faults), *(f"- {note}" for note in self.notes)]
        return "\n".join(rows).rstrip() + "\n"

    def require(self) -> None:
        """Raise DataError unless the data matches the protocol."""
        if self.faults:
            raise DataError(
                f"{self.root}: this is not the data of {self.protocol.name}:\n"
                + "".join(f"- {fault}\n" for fault in self.faults)
                + f"How to get it:\n{self.protocol.get}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the number of images and the fingerprint of each list as plain values, by name."""
        return {one.name: {"images": one.images, "md5": one.md5} for one in self.lists}


def check_data(data: str | Path, protocol: Protocol, settings: Settings) -> DataCheck:
    """Compare a data folder with a protocol: lists and counts, images and masks, tags, classes, saliency maps.

    No image is decoded; `tagseg fit` does that once and names those it cannot read.

    Raises:
        DataError: when the folder does not exist or has another layout; the message says how to get the data.
    """
    root = Path(data).resolve()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder, expected the data of {protocol.name}. How to get it:\n{protocol.get}")
    check = _check_voc if protocol.layout == "voc" else _check_coco
    try:
        lists, faults, notes, test = check(root, protocol, settings)
    except DataError as error:
        raise DataError(f"{error}\nHow to get the data of {protocol.name}:\n{protocol.get}") from error
    expected = {**protocol.lists, **protocol.optional}
    counts = [
        f"list {one.name}: {one.images:,} images, expected {expected[one.name]:,}"
        for one in lists
        if one.images != one.expected
    ]
    if not faults:
        # Missing files would stop the reader at the first of them.
        more, said = _as_read(root, protocol, settings)
        faults, notes = faults + more, notes + said
    return DataCheck(root, protocol, tuple(lists), (*counts, *faults), tuple(notes), tuple(test))


def fingerprint(names: Iterable[str]) -> str:
    """Return the MD5 of the sorted names, one per line; order, spaces and line ends do not change it."""
    lines = sorted(name.strip() for name in names)
    return hashlib.md5("".join(f"{line}\n" for line in lines).encode(), usedforsecurity=False).hexdigest()


def _check_voc(
    root: Path, protocol: Protocol, settings: Settings
) -> tuple[list[ImageList], list[str], list[str], Sequence[str]]:
    devkit = voc_root(root)
    if devkit is None:
        raise DataError(
            f"{root}: not a VOC devkit; it needs the folders JPEGImages and ImageSets, directly or in VOC2012"
        )
    given = {"train_aug": settings.data.train_list, "val": settings.data.val_list}
    flags = {"train_aug": "data.train-list", "val": "data.val-list"}
    lists: dict[str, list[str]] = {}
    for name in (*protocol.lists, *protocol.optional):
        names = TRAIN_LISTS[:2] if name in TRAIN_LISTS[:2] else (name,)
        file = list_file(devkit, given.get(name, ""), names, flags.get(name, name))
        if file is not None:
            lists[name] = [line.name for line in read_list(file)]
        elif name in protocol.lists:
            raise DataError(f"{devkit / 'ImageSets/Segmentation'}: no list {' or '.join(names)}.txt")
    truth = devkit / (settings.data.masks or "SegmentationClass")
    images, masks = _stems(devkit / "JPEGImages"), _stems(truth)
    train, scored, val = (lists[name] for name in protocol.lists)
    faults = [
        *_missing([*train, *val], images, "images", devkit / "JPEGImages", ".jpg"),
        *_missing([*scored, *val], masks, "true masks", truth, ".png"),
        *_overlap(val, train, "val and the training list"),
        *_missing(scored, set(train), "images of train.txt", Path("the training list")),
    ]
    notes, test = [], lists.get("test", [])
    without = [name for name in test if name not in images]
    if not test or without:
        missing = f"{len(without):,} of {len(test):,} test images are missing" if test else "there is no list test.txt"
        notes.append(f"no submission for the test server: {missing}")
        test = []
    return _found(lists, protocol), faults, notes, test


def _check_coco(
    root: Path, protocol: Protocol, settings: Settings
) -> tuple[list[ImageList], list[str], list[str], Sequence[str]]:
    lists: dict[str, list[str]] = {}
    faults: list[str] = []
    for name in protocol.lists:
        file = root / f"annotations/instances_{name}.json"
        if not file.is_file():
            raise DataError(f"{file}: missing")
        instances = read_instances(file)
        lists[name] = [str(instances.images[number]["file_name"]) for number in instances.annotations]
        folder = next((at for at in (root / name, root / "images" / name) if at.is_dir()), root / name)
        faults += _missing(map(_stem, lists[name]), _stems(folder), "images", folder, ".jpg")
    return _found(lists, protocol), faults, [], ()


def _found(lists: dict[str, list[str]], protocol: Protocol) -> list[ImageList]:
    expected = {**protocol.lists, **protocol.optional}
    return [ImageList(name, len(names), expected[name], fingerprint(names)) for name, names in lists.items()]


def _as_read(root: Path, protocol: Protocol, settings: Settings) -> tuple[list[str], list[str]]:
    """Faults and notes that appear when the data is read as a run reads it."""
    try:
        dataset = read_dataset(root, settings.data, settings.cache)
    except DataError as error:
        return [str(error)], []
    faults = []
    if len(dataset.classes) != protocol.classes:
        faults.append(f"{len(dataset.classes)} classes are tagged, expected {protocol.classes}")
    faults += _saliency(dataset, settings)
    # What COCO's protocol leaves out is expected, and yet decides how many images are compared.
    notes = [*dataset.notes, *(str(one) for one in dataset.ignored if dataset.layout == "coco" or not one.expected)]
    if settings.maps == "oaa" and not settings.masks.saliency:
        notes.append(
            "background is cut from the maps; the paper takes it from saliency maps in "
            f"{dataset.root / 'saliency'} (setting masks.saliency)"
        )
    return faults, notes


def _saliency(dataset: Dataset, settings: Settings) -> list[str]:
    if settings.maps != "eps" and not settings.masks.saliency:
        return []
    samples = dataset.split("train")
    found = {sample.id for sample in samples if sample.saliency is not None}
    folder = dataset.root / (settings.data.saliency or "saliency")
    return _missing((sample.id for sample in samples), found, "saliency maps", folder, ".png")


def _stems(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {_stem(entry.name) for entry in entries}


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


def _missing(wanted: Iterable[str], found: Collection[str], what: str, where: Path, suffix: str = "") -> list[str]:
    names = list(dict.fromkeys(wanted))
    lost = [name for name in names if name not in found]
    return [f"{len(lost):,} of {len(names):,} {what} are missing in {where}: {_some(lost, suffix)}"] if lost else []


def _overlap(names: Iterable[str], others: Iterable[str], which: str) -> list[str]:
    both = sorted(set(names) & set(others))
    return [f"{len(both):,} images are in both {which}: {_some(both)}"] if both else []


def _some(names: Sequence[str], suffix: str = "") -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(name + suffix for name in names[:_NAMED]) + more
