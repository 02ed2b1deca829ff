"""Read folders of images with a tag file (tags.csv, metadata.csv, metadata.jsonl) or with one folder per class."""

import csv
import dataclasses
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tagseg.data.gather import TaggedImage, gather, read_text
from tagseg.data.images import IMAGE_SUFFIXES, find_image, inside
from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.records import parse_json
from tagseg.system.untrusted import is_file, shown

TAG_FILES = ("tags.csv", "metadata.csv", "metadata.jsonl")
"""Names of tag files, the preferred one first."""

SPLITS = {"": "train", "train": "train", "val": "val", "validation": "val", "test": "test"}
"""Names of splits, in folder names and in the split column."""

_IMAGE_COLUMNS = ("image", "file", "file_name", "filename")
_TAG_COLUMNS = ("tags", "tag", "labels", "label", "classes", "class")


@dataclass(frozen=True)
class TagRow:
    """A row of a tag file: `where` is its file and row; `tags` is a cell that must be split, or a list of names."""

    where: str
    image: str
    tags: str | tuple[str, ...]
    split: str


def read_folder(root: Path, settings: DataSettings) -> Dataset:
    """Read a folder with a tag file, or with one sub-folder per class.

    The classes are those of `classes.txt` in its order, or else the sorted names.

    Raises:
        DataError: with file and row, when an image is missing, listed twice or outside the folder, or its tags are
            missing or unknown.
    """
    files = tag_files(root)
    images, notes = _images_in_tag_files(root, files) if files else _images_in_class_folders(root, settings)
    dataset = gather(root, "folder", images, notes)
    return dataclasses.replace(dataset, samples=attach(dataset.samples, root, settings))


def tag_files(root: Path) -> list[tuple[Path, str]]:
    """Return the tag files of a data folder with their splits: the one at the root, or else one per split folder."""
    for folders in ([""], [name for name in SPLITS if name]):
        paths = [[root / folder / name for name in TAG_FILES] for folder in folders]
        found = [next((path for path in group if path.is_file()), None) for group in paths]
        files = [(path, SPLITS[folder]) for path, folder in zip(found, folders, strict=True) if path is not None]
        if files:
            return files
    return []


def class_folders(root: Path, settings: DataSettings) -> list[tuple[Path, str]]:
    """Return the class folders of a data folder with their splits (also below train, val and test folders)."""
    extra = [companion(root, settings.masks, "masks", "data.masks")]
    extra.append(companion(root, settings.saliency, "saliency", "data.saliency"))

    def below(folder: Path) -> list[Path]:
        return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "." and path not in extra)

    folders = below(root)
    if [folder.name for folder in folders] == ["images"]:
        folders = below(folders[0])
    # A class may be called train: folders are splits only if all of them have names of splits.
    if folders and all(folder.name.lower() in SPLITS for folder in folders):
        return [(inner, SPLITS[folder.name.lower()]) for folder in folders for inner in below(folder)]
    return [(folder, "train") for folder in folders]


def read_rows(file: Path, split: str = "train") -> list[TagRow]:
    """Read a tag file (.csv or .jsonl, UTF-8); `split` is for rows without a split of their own.

    Raises:
        DataError: with file and row, when the file cannot be read or has no columns for image and tags.
    """
    text = read_text(file)
    rows = []
    for number, cells in _json_cells(file, text) if file.suffix == ".jsonl" else _csv_cells(file, text):
        where = f"{file}, row {number}"
        named = str(cells.get("split") or "").strip().lower()
        if named not in SPLITS:
            raise DataError(f"{where}: split {named!r}, expected train, val, validation or test")
        tags = next((cells[column] for column in _TAG_COLUMNS if column in cells), None)
        image = next(cells[column] for column in _IMAGE_COLUMNS if column in cells)
        for cell in (image, *(tags if isinstance(tags, list) else [tags])):
            if isinstance(cell, list | dict):
                raise DataError(
                    f"{where}: got {shown(cell)}, expected the name of an image and its tags (text or a list of names)"
                )
        if not isinstance(tags, list):
            tags = "" if tags is None else str(tags)
        else:
            tags = tuple(dict.fromkeys(name for name in (str(tag).strip() for tag in tags) if name))
        rows.append(TagRow(where, str(image).strip(), tags, SPLITS[named] if named else split))
    return rows


def split_rows(rows: Iterable[TagRow]) -> list[tuple[str, ...]]:
    """Return the tags of each row; spaces separate tags only if no cell of any row has a comma, semicolon or bar."""
    rows = list(rows)
    spaces = not any(re.search("[,;|]", row.tags) for row in rows if isinstance(row.tags, str))
    return [split_tags(row.tags, spaces) if isinstance(row.tags, str) else row.tags for row in rows]


def split_tags(cell: str, spaces: bool) -> tuple[str, ...]:
    """Split a cell at spaces if `spaces`, else at commas, semicolons and bars; repeated tags are dropped."""
    parts = cell.split() if spaces else re.split("[,;|]", cell)
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


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


def attach(samples: Sequence[Sample], root: Path, settings: DataSettings, masks: str = "masks") -> tuple[Sample, ...]:
    """Return the samples with their masks and saliency maps, which are found by path or, if unique, by file name.

    `masks` is the folder of masks if the settings do not name one ("": no folder).

    Raises:
        DataError: when a folder in the settings does not exist.
    """
    mask_folder = companion(root, settings.masks, masks, "data.masks")
    saliency_folder = companion(root, settings.saliency, "saliency", "data.saliency")
    if mask_folder is None and saliency_folder is None:
        return tuple(samples)
    stems = Counter(PurePosixPath(sample.id).name for sample in samples)

    def find(folder: Path | None, sample: Sample, suffixes: tuple[str, ...]) -> Path | None:
        if folder is None:
            return None
        stem = PurePosixPath(sample.id).name
        below = sample.image.relative_to(root).with_suffix("").as_posix()
        names = (sample.id, below, stem) if stems[stem] == 1 else (sample.id, below)
        paths = (folder / f"{name}{suffix}" for name in names for suffix in suffixes)
        return next((path for path in paths if is_file(path)), None)

    return tuple(
        dataclasses.replace(
            sample,
            mask=find(mask_folder, sample, (".png",)) or sample.mask,
            saliency=find(saliency_folder, sample, (".png", ".jpg", ".jpeg")) or sample.saliency,
        )
        for sample in samples
    )


def _images_in_tag_files(root: Path, files: list[tuple[Path, str]]) -> tuple[list[TaggedImage], list[str]]:
    rows = [(row, file.parent) for file, split in files for row in read_rows(file, split)]
    images: list[TaggedImage] = []
    first: dict[Path, str] = {}
    for (row, folder), tags in zip(rows, split_rows(row for row, _ in rows), strict=True):
        if row.split == "test":
            # Test images are left out: they may be missing, and need no tags.
            images.append(TaggedImage(row.where, row.image, root / row.image, (), "test"))
            continue
        image = find_image(root, (folder, folder / "images"), row.image, row.where)
        if image in first:
            raise DataError(f"{row.where}: image {row.image!r} is listed twice, first in {first[image]}")
        first[image] = row.where
        if not tags and row.split == "train":
            raise DataError(f"{row.where}: image {row.image!r} has no tags, expected at least one")
        images.append(TaggedImage(row.where, _id(root, image), image, tags, row.split))
    return images, []


def _images_in_class_folders(root: Path, settings: DataSettings) -> tuple[list[TaggedImage], list[str]]:
    images, notes = [], []
    for folder, split in class_folders(root, settings):
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if not paths:
            notes.append(f"folder {folder.relative_to(root).as_posix()} has no images and is left out")
        for path in paths:
            inside(root, path, f"folder {folder}")
            images.append(TaggedImage(f"folder {folder}", _id(root, path), path, (folder.name,), split))
    return images, notes


def _id(root: Path, image: Path) -> str:
    below = image.relative_to(root).with_suffix("")
    return PurePosixPath(*(below.parts[1:] if below.parts[0] == "images" else below.parts)).as_posix()


def _csv_cells(file: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    delimiter = next((mark for mark in ",;\t" if mark in text.split("\n", 1)[0]), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        _require_columns(header, f"{file}, row 1", "columns")
        tags = next(header.index(column) for column in _TAG_COLUMNS if column in header)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(header):
                if tags != len(header) - 1:
                    where = f"{file}, row {reader.line_num}"
                    raise DataError(f"{where}: {len(cells)} cells, expected {len(header)}; put the tags in quotes")
                cells = [*cells[:tags], delimiter.join(cells[tags:])]
            yield reader.line_num, dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=True))
    except csv.Error as error:
        raise DataError(f"{file}, row {reader.line_num}: not valid CSV ({error})") from error


def _json_cells(file: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"{file}, row {number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise DataError(f"{file}, row {number}: got {line[:40]!r}, expected a JSON object")
        cells = {key.lower(): value for key, value in record.items()}
        _require_columns(cells, f"{file}, row {number}", "keys")
        yield number, cells


def _require_columns(names: Iterable[str], where: str, kind: str) -> None:
    names = list(names)
    for wanted in (_IMAGE_COLUMNS, _TAG_COLUMNS):
        if not any(column in names for column in wanted):
            raise DataError(f"{where}: got {kind} {', '.join(names) or 'none'}, expected one of {', '.join(wanted)}")
