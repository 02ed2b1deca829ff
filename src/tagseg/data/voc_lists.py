"""Read the image lists of VOC devkits: names, with class numbers, masks, or 1 and -1 for one class."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tagseg.data.images import IMAGE_SUFFIXES
from tagseg.data.texts import read_text
from tagseg.errors import DataError
from tagseg.system.untrusted import is_file, shown

TRAIN_LISTS = ("train_aug", "trainaug", "train", "Train", "training", "default", "trainval")
"""Names of lists of training images, the preferred one first."""

VAL_LISTS = ("val", "Val", "valid", "validation", "Validation")
"""Names of lists of validation images, the preferred one first."""

_FOLDERS = ("ImageSets/Segmentation", "ImageSets/Main")


@dataclass(frozen=True)
class ListLine:
    """A line of an image list: `where` is its file and row.

    `numbers` are class numbers from 0; `mask` is the path of a mask in the second column; `present` says whether the
    image shows the class that the list is about (cat_train.txt), None in other lists.
    """

    where: str
    name: str
    numbers: tuple[int, ...] = ()
    mask: str = ""
    present: bool | None = None


def list_file(root: Path, given: str, names: Sequence[str], flag: str) -> Path | None:
    """Return the file of a devkit's image list: the one `given` by the setting `flag`, or else the first of `names`.

    Raises:
        DataError: when the given list does not exist.
    """
    for folder in _FOLDERS:
        for name in (given,) if given else names:
            file = root / folder / f"{name.removesuffix('.txt')}.txt"
            if is_file(file):
                return file
    if given:
        looked = " or ".join(str(root / folder) for folder in _FOLDERS)
        raise DataError(f"setting {flag}: no list {given!r}, expected {given.removesuffix('.txt')}.txt in {looked}")
    return None


def other_lists(root: Path) -> list[str]:
    """Return the names of the lists that a devkit has."""
    return sorted({path.stem for folder in _FOLDERS for path in (root / folder).glob("*.txt")})


def read_list(file: Path, about_one_class: bool = False) -> list[ListLine]:
    """Read an image list: one name per line, optionally followed by class numbers, by a mask, or by 1, 0 or -1.

    1 and 0 are class numbers unless the list has a -1 or is known to be `about_one_class`.

    Raises:
        DataError: with file and row, when the list cannot be read, has a name twice or a column of another kind.
    """
    rows = [(number, text.split()) for number, text in enumerate(read_text(file).split("\n"), start=1)]
    about_one_class = about_one_class or any(cells[1:] == ["-1"] for _, cells in rows)
    lines: dict[str, ListLine] = {}
    for number, cells in rows:
        if not cells:
            continue
        where, name, rest = f"{file}, row {number}", image_stem(cells[0]), cells[1:]
        if name in lines:
            raise DataError(f"{where}: image {name} is listed twice, first in {lines[name].where}")
        if about_one_class and rest in (["1"], ["0"], ["-1"]):
            lines[name] = ListLine(where, name, present=rest != ["-1"])
        elif len(rest) == 1 and rest[0].lower().endswith((".png", ".jpg", ".bmp", ".tif", ".gif")):
            lines[name] = ListLine(where, name, mask=rest[0])
        elif all(re.fullmatch("[0-9]{1,3}", cell) for cell in rest):
            lines[name] = ListLine(where, name, tuple(map(int, rest)))
        else:
            wrong = next(cell for cell in rest if not re.fullmatch("[0-9]{1,3}", cell))
            raise DataError(
                f"{where}: class number {shown(wrong)}, expected a name, and then class numbers from 0, the path of a "
                "mask, or 1 and -1"
            )
    return list(lines.values())


def presence(root: Path, file: Path) -> dict[str, list[str]]:
    """Return the tags by image from the lists beside `file` that are about one class each (cat_train.txt), if any."""
    tags: dict[str, list[str]] = {}
    for about in sorted((root / "ImageSets/Main").glob(f"*_{file.stem}.txt")):
        for line in read_list(about, about_one_class=True):
            if line.present is not None:
                tags.setdefault(line.name, []).extend([about.stem.removesuffix(f"_{file.stem}")] * line.present)
    return tags


def image_stem(name: str) -> str:
    """Return the name of an image below JPEGImages without suffix, from any path to it."""
    name = name.replace("\\", "/")
    name = name.rpartition("JPEGImages/")[2] if "JPEGImages/" in name else name.removeprefix("./")
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name
