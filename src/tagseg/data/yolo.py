"""Read tags from YOLO's layout: data.yaml with the classes, and one text file of boxes or outlines per image."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tagseg.data.ignored import walk
from tagseg.data.images import IMAGE_SUFFIXES
from tagseg.data.tag_rows import TagRow, split_of_folder, unique
from tagseg.data.texts import names_in, read_text
from tagseg.errors import DataError
from tagseg.system.untrusted import shown

_NAMES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")
_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


_LISTS = ("obj.names", "classes.txt", "labels/classes.txt", "_darknet.labels", "train/_darknet.labels")
"""Lists of class names that tools write beside the text files: CVAT, Label Studio, LabelImg and Roboflow."""


def yolo_files(root: Path) -> list[tuple[Path, str]]:
    """Return YOLO's description of a data folder, or its list of class names if there are text files of boxes."""
    found = [root / name for name in _NAMES if (root / name).is_file()]
    if not found:
        lists = [root / name for name in _LISTS if (root / name).is_file()]
        # A classes.txt may also give the order of the classes of other layouts.
        sure = [file for file in lists if file.name != "classes.txt"]
        found = sure or (lists if lists and any(_has_box(labels) for _, labels, _ in _pairs(root)) else [])
    return [(file, "train") for file in found[:1]]


def _has_box(labels: Path) -> bool:
    if not labels.is_file():
        return False
    with labels.open("rb") as opened:
        return re.match(rb"[0-9]+(\s+[0-9.eE+-]+){4}", opened.read(200)) is not None


def _pairs(root: Path) -> Iterator[tuple[Path, Path, str]]:
    """Yield the images below a folder with their text files, which may not exist, and their splits."""
    for path in walk(root):
        names = Path(path).relative_to(root).parts[:-1]
        if path.lower().endswith(IMAGE_SUFFIXES) and not {"masks", "saliency"} & set(names):
            split = next(filter(None, map(split_of_folder, names)), "train")
            yield Path(path), Path(_swapped(path)).with_suffix(".txt"), split


def yolo_rows(file: Path) -> list[TagRow]:
    """Read the tags of images in YOLO's layout: an image without a text file, or with an empty one, shows no class.

    Raises:
        DataError: when the description has no names, a folder is missing, or a class number is unknown.
    """
    rows: list[TagRow] = []
    listed = file.name not in _NAMES
    about = {} if listed else _read_yaml(file)
    names = dict(enumerate(names_in(file))) if listed else _names(file, about)
    if not _KEYS.keys() & about.keys():  # supervision names no folders either
        root = file.parent.parent if listed and file.parent.name in ("labels", "train") else file.parent
        for image, labels, split in _pairs(root):
            tags = _tags(labels, names) if labels.is_file() else ()
            rows.append(TagRow(str(image), str(image), tags, split, image.parent, image))
        return rows
    for key, split in _KEYS.items():
        given = about.get(key)
        for place in given if isinstance(given, list) else [given] if given else []:
            for image in _images(file, about, str(place), key):
                labels = Path(_swapped(str(image))).with_suffix(".txt")
                tags = _tags(labels, names) if labels.is_file() else ()
                rows.append(TagRow(str(image), str(image), tags, split, image.parent, image))
    return rows


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        about = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{file}: not valid YAML ({str(error)[:200]})") from error
    if not isinstance(about, dict):
        raise DataError(f"{file}: got {shown(about)}, expected keys train, val and names")
    return about


def _names(file: Path, about: dict[str, Any]) -> dict[int, str]:
    given = about.get("names")
    names = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(names, dict) or not all(isinstance(key, int) for key in names):
        raise DataError(f"{file}: names must be a list of classes or map numbers to them, got {shown(given)}")
    return {key: str(name) for key, name in names.items()}


def _images(file: Path, about: dict[str, Any], place: str, key: str) -> list[Path]:
    """Return the images of a split; Roboflow writes ../train/images for a folder beside the description."""
    base = str(about.get("path") or "").replace("\\", "/").strip("/")
    place = place.replace("\\", "/")
    short = re.sub(r"^(\.{1,2}/)+", "", place).strip("/")
    tried = [file.parent / short, file.parent / base / short, file.parent / Path(short).name]
    if place.startswith("/") and Path(place).is_relative_to(file.parent):
        tried.insert(0, Path(place))
    folder = next((one for one in tried if one.resolve().is_relative_to(file.parent.resolve()) and one.exists()), None)
    if folder is None:
        if key == "test":
            return []
        raise DataError(f"{file}: {key} is {place!r}, expected a folder of images in {file.parent}")
    if folder.is_file():
        lines = [line.strip() for line in read_text(folder).split("\n") if line.strip()]
        listed = [(file.parent / re.sub(r"^(\./)+", "", line.replace("\\", "/").lstrip("/"))) for line in lines]
        return [path for path in listed if path.is_file() and path.resolve().is_relative_to(file.parent.resolve())]
    return [Path(path) for path in walk(folder) if path.lower().endswith(IMAGE_SUFFIXES)]


def _swapped(image: str) -> str:
    """Return a path with its last folder `images` replaced by `labels`, as YOLO does."""
    before, found, after = image.rpartition("/images/")
    return f"{before}/labels/{after}" if found else image


def _tags(file: Path, names: dict[int, str]) -> tuple[str, ...]:
    tags = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        cells = line.split()
        if not cells:
            continue
        class_id = int(float(cells[0])) if re.fullmatch(r"[0-9]{1,6}(\.0+)?", cells[0]) else None
        if class_id not in names:
            raise DataError(f"{file}, row {number}: class {shown(cells[0])}, expected one of {shown(sorted(names))}")
        tags.append(names[class_id])
    return unique(tags)
