"""Masks as annotation tools write them: pixel values are colours, or line numbers of a labelmap.txt."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tagseg.data.images import read_image_of_size, read_mask_file
from tagseg.data.records import VOID
from tagseg.errors import DataError
from tagseg.masks.palette import VOID_COLOUR, class_colours
from tagseg.system.untrusted import read_bytes

_BACKGROUND, _VOID = ("background",), ("void", "ignore", "ignored")


@dataclass(frozen=True)
class LabelMap:
    """A labelmap.txt.

    names: the label on each line. ids: the class id of each line; None if the data set has no such class. lines: the
    line of each colour, given as 0xRRGGBB.
    """

    file: Path
    names: tuple[str, ...]
    ids: tuple[int | None, ...]
    lines: dict[int, int]


def read_label_map(file: Path, classes: tuple[str, ...]) -> LabelMap:
    """Read a labelmap.txt with one `name:r,g,b:parts:actions` per line; # starts a comment.

    Raises:
        DataError: when a line is malformed, or there are more than 256 labels; names the file and the row.
    """
    names: list[str] = []
    lines: dict[int, int] = {}
    default = class_colours(VOID)
    for number, text in enumerate(read_bytes(file).decode("utf-8-sig", "replace").split("\n"), 1):
        line = text.strip()
        if not line or line[0] == "#":
            continue
        cells = line.rsplit(":", 3)
        colour = cells[1].split(",") if len(cells) == 4 and cells[1] else []
        channels = [int(cell) for cell in colour if re.fullmatch(" *[0-9]{1,3} *", cell) and int(cell) < 256]
        if len(cells) != 4 or len(channels) != len(colour) or len(colour) not in (0, 3) or len(names) > VOID:
            raise DataError(f"{file}, row {number}: got {line[:60]!r}, expected name:r,g,b::, at most 256 lines")
        red, green, blue = channels or default[len(names)]
        lines.setdefault(red << 16 | green << 8 | blue, len(names))
        names.append(cells[0])
    known = {name: i for i, name in enumerate(classes, 1)}
    known = {**dict.fromkeys(_BACKGROUND, 0), **dict.fromkeys(_VOID, VOID), **known}
    return LabelMap(file, tuple(names), tuple(known.get(name) for name in names), lines)


def coloured_mask(file: Path, labels: LabelMap, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Return a mask PNG as class ids; a grey PNG is read as line numbers, any other as colours.

    Raises:
        DataError: when the file cannot be read, is not of `size` (height, width), or holds a value that is not a class.
    """
    picture, mode = read_image_of_size(file, size)
    grey = mode in ("L", "1")
    if grey:
        values, inverse = np.unique(read_mask_file(file, size), return_inverse=True)
        lines = [int(value) if value < len(labels.names) else None for value in values]
        ids = [
            VOID if value == VOID and line is None else _id_of_line(labels, line)
            for value, line in zip(values, lines, strict=True)
        ]
    else:
        channels = np.asarray(picture).astype(np.int32)
        values, inverse = np.unique(channels @ np.array([1 << 16, 1 << 8, 1], np.int32), return_inverse=True)
        ids = [_id_of_colour(labels, int(value)) for value in values]
    unknown = [int(value) for value, class_id in zip(values, ids, strict=True) if class_id is None]
    if unknown:
        shown = ", ".join(_described(labels, value, grey) for value in unknown[:10])
        raise DataError(f"{file}: {shown} in the mask, expected only classes of the data set listed in {labels.file}")
    mask: UInt8[np.ndarray, "h w"] = np.array(ids, np.uint8)[inverse.reshape(size)]
    return mask


def _id_of_line(labels: LabelMap, line: int | None) -> int | None:
    return None if line is None else labels.ids[line]


def _id_of_colour(labels: LabelMap, colour: int) -> int | None:
    line = labels.lines.get(colour)
    if line is not None:
        return labels.ids[line]
    red, green, blue = VOID_COLOUR
    return {0: 0, red << 16 | green << 8 | blue: VOID}.get(colour)


def _described(labels: LabelMap, value: int, grey: bool) -> str:
    line = (value if value < len(labels.names) else None) if grey else labels.lines.get(value)
    if line is not None:
        return f"label {labels.names[line]!r}"
    return f"value {value}" if grey else f"colour {value >> 16},{value >> 8 & 255},{value & 255}"
