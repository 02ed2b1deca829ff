"""Where tags come from in a folder of images: one table of files that are recognised, in the order of preference."""

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tagseg.data.arrow import arrow_folders, arrow_rows
from tagseg.data.ignored import walk
from tagseg.data.tag_exports import (
    JsonKind,
    cvat_rows,
    json_kind,
    json_rows,
    labelme_row,
    supervisely_folders,
    supervisely_rows,
    xml_tags,
)
from tagseg.data.tag_rows import TagRow, split_of, split_of_folder
from tagseg.data.tag_tables import has_columns, read_table
from tagseg.data.texts import read_json_text, read_text
from tagseg.data.yolo import yolo_files, yolo_rows
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

TAG_FILES = ("tags.csv", "metadata.csv", "metadata.jsonl")
"""Names of tag files, the preferred one first."""

Files = list[tuple[Path, str]]
"""Files or folders with their splits."""


@dataclass(frozen=True)
class TagSource:
    """A kind of file that holds tags: its name in messages, what it is known by, how to find and how to read it.

    `partial`: it may name images that are not there (a list of a public data set), which are left out.
    """

    name: str
    known_by: str
    find: Callable[[Path], Files]
    read: Callable[[Path, str, DataSettings, list[str]], list[TagRow]]
    partial: bool = False


def find_source(root: Path) -> tuple[TagSource, Files] | None:
    """Return the first source of the table that a data folder has, with its files; None if it has none."""
    for source in SOURCES:
        files = source.find(root)
        if files:
            return source, files
    return None


def split_places(root: Path) -> list[tuple[Path, str]]:
    """Return the folders of splits (train, valid, ...; also below images) that a data folder has, with their splits."""
    places = []
    for base in (root, root / "images"):
        if base.is_dir():
            for name in sorted(os.listdir(base)):
                split = split_of_folder(name)
                if split is not None and (base / name).is_dir():
                    places.append((base / name, split))
    return places


def tag_files(root: Path) -> Files:
    """Return the tag files of a data folder with their splits: the one at the root, or else one per split folder."""
    return _named(root, TAG_FILES)


def _named(root: Path, names: tuple[str, ...]) -> Files:
    for places in ([(root, "train")], split_places(root)):
        found = []
        for folder, split in places:
            present = {name.lower(): name for name in sorted(os.listdir(folder))}
            file = next((folder / present[name] for name in names if name in present), None)
            if file is not None and file.is_file():
                found.append((file, split))
        if found:
            return found
    return []


def _json_files(*kinds: JsonKind) -> Callable[[Path], Files]:
    def find(root: Path) -> Files:
        for places in ([(root, "train")], split_places(root)):
            found = [
                (file, split_of(file.stem) or split if folder == root else split)
                for folder, split in places
                for file in sorted(folder.glob("*.json"))
                if file.is_file() and not file.name.startswith(".") and _kind(file) in kinds
            ]
            if found:
                return found
        return []

    return find


def _kind(file: Path) -> JsonKind | None:
    try:
        return json_kind(read_json_text(file))
    except (DataError, OSError):
        return None


def _other_tables(root: Path) -> Files:
    """Return CSV files of any other name that have a column for images, at the top or else in folders of splits."""
    found = _tables(root)
    return found or [(file, split) for folder, split in split_places(root) for file, _ in _tables(folder)]


def _tables(folder: Path) -> Files:
    """Return the tables in a folder: the only one, or those with names of splits."""
    files = [
        file for file in sorted(folder.iterdir())
        if file.suffix.lower() in (".csv", ".tsv", ".jsonl") and file.is_file() and not file.name.startswith((".", "_"))
        and "submission" not in file.name.lower() and (file.suffix.lower() == ".jsonl" or has_columns(file))
    ]  # fmt: skip
    splits = [(file, split_of(file.stem)) for file in files]
    named = [(file, split) for file, split in splits if split is not None]
    if len(files) == 1:
        return [(files[0], named[0][1] if named else "train")]
    if len(named) != len(files) and files:
        raise DataError(
            f"{folder}: several files may hold the tags: {', '.join(file.name for file in files[:10])}; rename the one "
            "to use to tags.csv"
        )
    return named


def _open_images(root: Path) -> Files:
    """Return the image-level labels of Open Images: their columns are ImageID, LabelName and others."""
    found = []
    for file in sorted((*root.glob("*.csv"), *root.glob("annotations/*.csv"), *root.glob("metadata/*.csv"))):
        with file.open("rb") as opened:
            head = opened.readline(1000).decode("utf-8-sig", "replace").strip().lower().split(",")
        if {"imageid", "labelname"} <= set(head):
            found.append((file, split_of(file.stem) or "train"))
    return found


def _read_open_images(file: Path, split: str, settings: DataSettings, notes: list[str]) -> list[TagRow]:
    rows = read_table(file, split, settings.min_score, notes)
    names: dict[str, str] = {}
    for about in sorted(file.parent.glob("*class-descriptions*.csv")):
        for line in read_text(about).split("\n"):
            code, comma, name = line.strip().partition(",")
            if comma:
                names[code.strip('"')] = name.strip('"')
    if not names:
        notes.append(
            "tags are codes such as /m/01yrx: put Open Images' class-descriptions CSV beside the labels for names"
        )
    # A list, because a name may have spaces and commas.
    return [
        dataclasses.replace(row, tags=(names.get(row.tags, row.tags),) if isinstance(row.tags, str) else ())
        for row in rows
    ]


def _labelme_files(root: Path) -> Files:
    files = [Path(path) for path in walk(root) if path.lower().endswith(".json")]
    return _with_splits(root, files) if files and _kind(files[0]) == "labelme" else []


def _voc_files(root: Path) -> Files:
    if (root / "JPEGImages").is_dir():  # a devkit without its lists
        return []
    files = [Path(path) for path in walk(root) if path.lower().endswith(".xml")]
    return _with_splits(root, files) if files and _starts_with(files[0], rb"<annotation\s*>") else []


def _with_splits(root: Path, files: list[Path]) -> Files:
    """Return one file per image with its split, which is the name of a folder that it is in."""
    found = []
    for file in files:
        names = file.relative_to(root).parts[:-1]
        found.append((file, next(filter(None, map(split_of_folder, names)), "train")))
    return found


def _starts_with(file: Path, element: bytes) -> bool:
    with file.open("rb") as opened:
        return re.search(element, opened.read(4096).replace(b"\0", b"")) is not None


def _cvat_files(root: Path) -> Files:
    files = [file for file in sorted(root.glob("*.xml")) if _starts_with(file, b"<annotations")]
    return [(file, split_of(file.stem) or "train") for file in files]


TABLE = TagSource(
    "tag file",
    "tags.csv, metadata.csv or metadata.jsonl, at the top or in folders of splits",
    tag_files,
    lambda file, split, settings, notes: read_table(file, split, settings.min_score, notes),
)

SOURCES = (
    TABLE,
    TagSource(
        "Roboflow's export as CSV",
        "_classes.csv or _annotations.csv in each split's folder",
        lambda root: _named(root, ("_classes.csv", "_annotations.csv")),
        lambda file, split, settings, notes: read_table(file, split, settings.min_score, notes),
    ),
    TagSource(
        "Hugging Face data set on disk",
        "dataset_info.json and *.arrow, or dataset_dict.json",
        arrow_folders,
        lambda file, split, settings, notes: arrow_rows(file, split),
    ),
    TagSource(
        "Supervisely project",
        "meta.json, and folders with img and ann",
        lambda root: [(root, "train")] if supervisely_folders(root) else [],
        lambda file, split, settings, notes: supervisely_rows(file),
    ),
    TagSource(
        "YOLO's layout",
        "data.yaml, or classes.txt beside labels",
        yolo_files,
        lambda file, split, settings, notes: yolo_rows(file),
    ),
    TagSource(
        "Label Studio's export",
        "a JSON file of tasks, JSON or JSON-MIN",
        _json_files("labelstudio"),
        lambda file, split, settings, notes: json_rows(file, split, settings.min_score),
    ),
    TagSource(
        "FiftyOne's export",
        "samples.json or labels.json",
        _json_files("fiftyone", "fiftyone-labels"),
        lambda file, split, settings, notes: json_rows(file, split, settings.min_score),
    ),
    TagSource(
        "JSON file of tags",
        'a JSON file like {"a.jpg": ["cat"]} or [{"image": "a.jpg", "tags": ["cat"]}]',
        _json_files("mapping", "records"),
        lambda file, split, settings, notes: json_rows(file, split, settings.min_score),
    ),
    TagSource(
        "CVAT's XML for images",
        "an XML file with annotations",
        _cvat_files,
        lambda file, split, settings, notes: cvat_rows(file, split),
    ),
    TagSource(
        "LabelMe's or X-AnyLabeling's JSON",
        "a JSON file beside each image",
        _labelme_files,
        lambda file, split, settings, notes: [labelme_row(file, split)],
    ),
    TagSource(
        "VOC's XML",
        "an XML file for each image, outside of a devkit",
        _voc_files,
        lambda file, split, settings, notes: [TagRow(str(file), file.stem, xml_tags(file), split, file.parent)],
    ),
    TagSource(
        "Open Images' labels",
        "a CSV file with ImageID, LabelName and Confidence",
        _open_images,
        _read_open_images,
        partial=True,
    ),
    TagSource(
        "table of tags",
        "one CSV file of any name with a column for images, or one per split (train.csv, val.csv)",
        _other_tables,
        lambda file, split, settings, notes: read_table(file, split, settings.min_score, notes),
    ),
)
"""Every kind of file that holds tags, the preferred one first."""
