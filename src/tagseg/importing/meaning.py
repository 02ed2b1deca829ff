"""What the pixels of masks from other tools mean: values and colours, as files beside the masks say.

A mask is read only if it has one meaning. Where values and colours say different things, or white could be a class or
void, it is an error that says what to pass.
"""

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from tagseg.data.mask_values import VOID_CODE, known_names, read_mask_names
from tagseg.data.records import VOID, Dataset
from tagseg.data.true_masks import MaskPixels, read_mask_pixels
from tagseg.errors import DataError
from tagseg.masks.palette import png_palette
from tagseg.segment.labels import class_values
from tagseg.system.untrusted import read_bytes

log = logging.getLogger(__name__)

CLASSES_JSON, LABEL_MAP, CLASS_NAMES = "classes.json", "labelmap.txt", "class_names.txt"
"""Files beside masks that say what their pixels mean, of tagseg, of CVAT and Datumaro, and of LabelMe."""

_WHITE = 0xFFFFFF

_MANY = 5
"""More unknown colours than this are shades of edges rather than labels."""


@dataclass(frozen=True)
class Meaning:
    """What the pixels of a folder's masks mean.

    values: class ids by grey value or palette index; colours: class ids by colour, 0xRRGGBB. None: a name that is not
    a class of the data set. file: where this is said; None: nowhere. value_names, colour_names: what it calls them.
    colours_first: whether values count only in grey masks.
    """

    values: Mapping[int, int | None]
    colours: Mapping[int, int | None]
    file: Path | None = None
    value_names: Mapping[int, str] = field(default_factory=dict)
    colour_names: Mapping[int, str] = field(default_factory=dict)
    colours_first: bool = False


def find_meaning(folders: Iterable[Path], dataset: Dataset) -> Meaning:
    """Return what the pixels of masks mean, by the first file that says so in one of the folders.

    Without one, values mean what they mean in the data set's own masks, and colours are VOC's for these values.

    Raises:
        DataError: when such a file is damaged, or contradicts itself.
    """
    for folder in folders:
        if (folder / CLASSES_JSON).exists():
            return _by_value(class_values(folder / CLASSES_JSON, dataset) or {}, folder / CLASSES_JSON)
        if (folder / LABEL_MAP).is_file():
            return read_label_map(folder / LABEL_MAP, dataset.classes)
        if (folder / CLASS_NAMES).is_file():
            return read_class_names(folder / CLASS_NAMES, dataset.classes)
    ids = dataset.mask_ids
    return _by_value(ids if ids is not None else {i: i for i in range(1, len(dataset.classes) + 1)})


def _by_value(ids: Mapping[int, int | None], file: Path | None = None, names: Mapping[int, str] = {}) -> Meaning:
    values: dict[int, int | None] = {0: 0, VOID: VOID, **ids}
    palette = png_palette()
    colours = {_packed(palette[3 * value : 3 * value + 3]): class_id for value, class_id in values.items()}
    return Meaning(values, colours, file, names)


def read_label_map(file: Path, classes: tuple[str, ...]) -> Meaning:
    """Read a labelmap.txt with one `name:r,g,b:parts:actions` per line; # starts a comment.

    A grey mask may hold the numbers of the lines instead of colours.

    Raises:
        DataError: when a line is malformed, there are more than 256 labels, or two labels have the same colour; names
            the file and the row.
    """
    named, known = read_mask_names(file), known_names(classes)
    values: dict[int, int | None] = {number: known.get(name) for number, name in named.values.items()}
    colours: dict[int, int | None] = {0: 0, VOID_CODE: VOID}
    colours |= {colour: known.get(name) for colour, name in named.colours.items()}
    if _WHITE not in colours:
        values.setdefault(VOID, VOID)
    return Meaning(values, colours, file, named.values, named.colours, colours_first=True)


def read_class_names(file: Path, classes: tuple[str, ...]) -> Meaning:
    """Read LabelMe's class_names.txt: one name per line, for the values from 0; `__ignore__` before them is void.

    Raises:
        DataError: when the first name is not background.
    """
    names = [line.strip() for line in read_bytes(file).decode("utf-8-sig", "replace").splitlines() if line.strip()]
    known = known_names(classes)
    if names and known.get(names[0]) == VOID:
        names = names[1:]
    if not names or known.get(names[0]) != 0 or len(names) > VOID:
        raise DataError(
            f"{file}: got {names[0] if names else 'no name'!r} for value 0, expected _background_ in the first line, "
            "then a class per line"
        )
    return _by_value({value: known.get(name) for value, name in enumerate(names)}, file, dict(enumerate(names)))


def settle_white(meaning: Meaning, found: Iterable[tuple[Path, MaskPixels]], dataset: Dataset) -> Meaning:
    """Return what white means if all masks are black and white: the class of a data set that has only one.

    Raises:
        DataError: when there are several classes.
    """
    seen: set[int] = set()
    first = None
    for file, pixels in found if meaning.file is None else ():
        first = first or file
        seen.update(np.unique(pixels.values).tolist() if pixels.values is not None and pixels.palette is None else [-1])
        if not seen <= {0, VOID}:
            return meaning
    if VOID not in seen:
        return meaning
    if len(dataset.classes) == 1:
        log.info("%s and the other masks are black and white: white is read as %s", first, dataset.classes[0])
        return dataclasses.replace(meaning, values={**meaning.values, VOID: 1})
    example = json.dumps({"0": "background", "255": dataset.classes[0]}, ensure_ascii=False)
    raise DataError(
        f"{first} and the other masks are black and white, with the values {', '.join(map(str, sorted(seen)))}: 255 "
        f"stands for void pixels, and no class would be learned. If white is a class, say which in a {CLASSES_JSON} "
        f"beside the masks, for example {example}; otherwise save the values of the classes, or colours with a "
        f"{LABEL_MAP}"
    )


def read_mask_by(file: Path, meaning: Meaning, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Return a mask PNG as class ids.

    Raises:
        DataError: when the file cannot be read, is not of `size` (height, width), holds a value or colour that is not a
            class, or its values and its colours mean different classes.
    """
    pixels = read_mask_pixels(file, size)
    readings = []
    if pixels.colours is not None:
        readings.append(_Reading(pixels.colours, meaning.colours))
    elif meaning.colours_first and pixels.values is not None:
        readings.append(_Reading(pixels.values.astype(np.int32) * 0x010101, meaning.colours))
    if pixels.values is not None and (pixels.colours is None or not meaning.colours_first):
        readings.append(_Reading(pixels.values, meaning.values))
    right = [reading.mask() for reading in readings if not reading.unknown()]
    if not right:
        raise DataError(f"{file}: {_not_understood(meaning, readings[-1])}")
    if len(right) == 2 and not np.array_equal(right[0], right[1]):
        lines = f", the lines of {meaning.file.name}" if meaning.colours_first and meaning.file else ""
        raise DataError(
            f"{file}: its colours mean ids {_listed(np.unique(right[0]))}, its values{lines} ids "
            f"{_listed(np.unique(right[1]))}; save it without a palette: as RGB its colours count, as grey its values"
        )
    return right[0]


class _Reading:
    """The pixels of a mask, read by one table: `ids` are class ids by value or colour."""

    def __init__(self, pixels: UInt8[np.ndarray, "h w"] | Int32[np.ndarray, "h w"], ids: Mapping[int, int | None]):
        self.values, inverse = np.unique(pixels, return_inverse=True)
        self.inverse, self.by_value = inverse.reshape(pixels.shape), pixels.dtype == np.uint8
        self.ids = [ids.get(int(value)) for value in self.values]

    def unknown(self) -> list[int]:
        """Return the values that are not classes."""
        return [int(value) for value, class_id in zip(self.values, self.ids, strict=True) if class_id is None]

    def mask(self) -> UInt8[np.ndarray, "h w"]:
        """Return the mask."""
        mask: UInt8[np.ndarray, "h w"] = np.array(self.ids, np.uint8)[self.inverse]
        return mask


def _not_understood(meaning: Meaning, reading: _Reading) -> str:
    unknown, by_value = reading.unknown(), reading.by_value
    texts = [str(value) if by_value else f"{value >> 16},{value >> 8 & 255},{value & 255}" for value in unknown[:10]]
    names = meaning.value_names if by_value else meaning.colour_names
    shown = ", ".join(
        f"{text} ({names[value]})" if value in names else text for value, text in zip(unknown, texts, strict=False)
    )
    place = f"the classes in {meaning.file}" if meaning.file else "the ids or colours of the data set's own masks"
    remedy = f"say what they mean in a {CLASSES_JSON} (values) or {LABEL_MAP} (colours) beside the masks"
    if len(unknown) > _MANY and not by_value:
        remedy = "smoothed edges and JPEG change them; save PNGs without smoothing"
    kind = "ids" if by_value else "colours"
    return f"unknown {kind} {shown} in the mask ({len(unknown)} in all), expected only {place}; {remedy}"


def _listed(values: np.ndarray) -> str:
    return ", ".join(map(str, values.tolist()[:10]))


def _packed(channels: Iterable[int]) -> int:
    red, green, blue = channels
    return red << 16 | green << 8 | blue
