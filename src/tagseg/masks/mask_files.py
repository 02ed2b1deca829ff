"""Write masks as palette PNGs named like their images, and the meaning of their values."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tagseg.errors import DataError
from tagseg.masks.palette import png_palette
from tagseg.system.files import write_atomically
from tagseg.system.records import Record, read_record, write_record

MaskValue = Annotated[int, msgspec.Meta(ge=0, le=255)]


def mask_file(folder: Path, sample_id: str) -> Path:
    """Return the path of an image's mask, which is named like the image."""
    return folder / f"{sample_id}.png"


def write_mask(path: Path, mask: UInt8[np.ndarray, "h w"]) -> None:
    """Write a mask as a palette PNG in VOC's colours."""
    write_atomically(path, mask_png(mask))


def mask_png(mask: UInt8[np.ndarray, "h w"]) -> bytes:
    """Return a mask as a palette PNG in VOC's colours."""
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette(png_palette())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


class MaskClasses(Record, frozen=True):
    """classes.json of a folder of masks: the name of the class that each value in the masks stands for."""

    bare: ClassVar[bool] = True
    names: dict[MaskValue, str]


def write_classes(folder: Path, classes: Sequence[str]) -> None:
    """Write classes.json: the meaning of the values in a folder's masks."""
    names = {0: "background", **dict(enumerate(classes, 1)), 255: "void"}
    write_record(folder / "classes.json", MaskClasses(names))


def read_classes(file: Path) -> dict[int, str]:
    """Return the class name of each mask value from a classes.json.

    Raises:
        DataError: when the file is missing or damaged.
    """
    example = 'expected an object like {"0": "background", "1": "cat"}'
    return read_record(file, MaskClasses, example, DataError).names
