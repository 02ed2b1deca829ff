"""What the values and colours of mask files mean, according to the settings or to files beside the masks."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagseg.data.records import VOID
from tagseg.data.texts import read_json_text, read_text
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

BACKGROUND_NAMES = ("background", "_background_", "__background__", "bg", "backgroud")
"""Names of the background in lists of classes of other tools."""

VOID_NAMES = ("void", "ignore", "ignored", "__ignore__", "_ignore_", "unlabeled", "unlabelled", "unsure")
"""Names of pixels to ignore in lists of classes of other tools."""

NAME_FILES = ("labelmap.txt", "class_names.txt", "label_names.txt", "classes.json")
"""Files that say what the values of masks mean, the preferred one first; they lie beside the masks or above them."""


VOID_CODE = 0xE0E0C0
"""The colour of void pixels in Pascal VOC's own mask files."""


@dataclass(frozen=True)
class MaskNames:
    """What `source` says about values and colours (0xRRGGBB) of masks: the name of a class, background or void."""

    source: str
    values: Mapping[int, str]
    colours: Mapping[int, str]

    def classes(self) -> tuple[str, ...]:
        """Return the names of classes in order, without background and void."""
        names = dict.fromkeys((*self.values.values(), *self.colours.values()))
        return tuple(name for name in names if meaning(name, ()) is None)


def known_names(classes: Sequence[str]) -> dict[str, int]:
    """Return class ids by name, with the names that tools give to background (0) and to void pixels (255).

    A class of the data set may itself have such a name.
    """
    own = {name: number for number, name in enumerate(classes, 1)}
    return {**dict.fromkeys(BACKGROUND_NAMES, 0), **dict.fromkeys(VOID_NAMES, VOID), **own}


def meaning(name: str, classes: Sequence[str]) -> int | None:
    """Return the class id of a name: 0 for background, 255 for void, None for an unknown name."""
    known = known_names(classes)
    return known.get(name, known.get(name.lower()))


@functools.cache
def voc_colour(value: int) -> int:
    """Return the colour 0xRRGGBB that Pascal VOC's rule gives to a value.

    The bits of a value go to red, green and blue in turn, lowest bit first, and fill each channel from its highest bit
    down, so that small values differ most.
    """
    red = green = blue = 0
    for bit in range(8):
        red |= ((value >> (3 * bit)) & 1) << (7 - bit)
        green |= ((value >> (3 * bit + 1)) & 1) << (7 - bit)
        blue |= ((value >> (3 * bit + 2)) & 1) << (7 - bit)
    return red << 16 | green << 8 | blue


def mask_names(folder: Path | None, root: Path, settings: DataSettings) -> MaskNames | None:
    """Return what the setting data.mask-values, or a file beside the masks in `folder` or in `root`, says about values.

    Raises:
        DataError: when the setting or the file is malformed.
    """
    if settings.mask_values:
        return parse_mask_values(settings.mask_values)
    places = dict.fromkeys(place for place in (folder, folder and folder.parent, root) if place is not None)
    for place in places:
        if place != folder and not place.is_relative_to(root):
            continue
        for name in NAME_FILES:
            if (place / name).is_file():
                return read_mask_names(place / name)
    return None


def read_mask_names(file: Path) -> MaskNames:
    """Read labelmap.txt (CVAT, Datumaro), class_names.txt (LabelMe), label_names.txt or classes.json (tagseg).

    Raises:
        DataError: when a line is malformed; names the file and the row.
    """
    if file.name == "labelmap.txt":
        return _label_map(file)
    if file.suffix == ".json":
        content = read_json_text(file)
        if not isinstance(content, dict) or not all(re.fullmatch("[0-9]{1,3}", key) for key in content):
            raise DataError(f'{file}: expected an object like {{"0": "background", "1": "cat"}}')
        return MaskNames(str(file), {int(key): str(name) for key, name in content.items()}, {})
    names = [line.strip() for line in read_text(file).split("\n") if line.strip()]
    first = 0 if names and names[0].lower() in BACKGROUND_NAMES + VOID_NAMES else 1
    # LabelMe's list starts with __ignore__ (-1, written as 255) and _background_ (0).
    values = {}
    for number, name in enumerate(names, first):
        values[number] = name
    if names and names[0].lower() in VOID_NAMES:
        values = {VOID: names[0], **dict(enumerate(names[1:]))}
    if len(names) > VOID:
        raise DataError(f"{file}: {len(names)} names, expected at most {VOID}")
    return MaskNames(str(file), values, {})


def _label_map(file: Path) -> MaskNames:
    values: dict[int, str] = {}
    colours: dict[int, str] = {}
    for number, text in enumerate(read_text(file).split("\n"), 1):
        line = text.strip()
        if not line or line[0] == "#":
            continue
        cells = line.rsplit(":", 3)
        colour = cells[1].split(",") if len(cells) == 4 and cells[1] else []
        channels = [int(cell) for cell in colour if re.fullmatch(" *[0-9]{1,3} *", cell) and int(cell) < 256]
        if len(cells) != 4 or len(channels) != len(colour) or len(colour) not in (0, 3) or len(values) > VOID:
            raise DataError(f"{file}, row {number}: got {line[:60]!r}, expected name:r,g,b::, at most 256 lines")
        code = channels[0] << 16 | channels[1] << 8 | channels[2] if channels else voc_colour(len(values))
        if colours.get(code, cells[0]) != cells[0]:
            raise DataError(f"{file}, row {number}: {cells[0]!r} has the colour of {colours[code]!r}, expected its own")
        colours[code] = cells[0]
        values[len(values)] = cells[0]
    return MaskNames(str(file), values, colours)


def parse_mask_values(text: str) -> MaskNames:
    """Read the setting data.mask-values: VALUE=CLASS separated by commas; a value is a number or a colour like #ff0000.

    Raises:
        DataError: when an entry is malformed.
    """
    values: dict[int, str] = {}
    colours: dict[int, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        given, sign, name = (part.strip() for part in entry.partition("="))
        if sign and name and re.fullmatch("[0-9]{1,3}", given) and int(given) <= VOID:
            values[int(given)] = name
        elif sign and name and re.fullmatch("#[0-9a-fA-F]{6}", given):
            colours[int(given[1:], 16)] = name
        else:
            raise DataError(
                f"setting data.mask-values: got {entry[:60]!r}, expected VALUE=CLASS, such as 255=cat or #ff0000=cat"
            )
    return MaskNames("setting data.mask-values", values, colours)


@dataclass(frozen=True)
class MaskCode:
    """Class ids of values and colours (0xRRGGBB) of mask files; None stands for a name that is not a class."""

    values: Mapping[int, int]
    colours: Mapping[int, int]


def mask_code(names: MaskNames, classes: Sequence[str]) -> MaskCode:
    """Return the class ids of the named values and colours; names that are not classes of the data set are left out.

    Raises:
        DataError: when none of the names is a class, although there are some.
    """
    if names.classes() and not set(names.classes()) & set(classes):
        raise DataError(
            f"{names.source}: names {', '.join(names.classes())[:300]}, expected classes of the data set: "
            f"{', '.join(classes)[:300]}"
        )
    values = {value: found for value, name in names.values.items() if (found := meaning(name, classes)) is not None}
    colours = {value: found for value, name in names.colours.items() if (found := meaning(name, classes)) is not None}
    return MaskCode(values, colours)
