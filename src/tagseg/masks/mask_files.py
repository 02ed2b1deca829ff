"""Write masks as palette PNGs named like their images, and the meaning of their values."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tagseg.masks.palette import png_palette
from tagseg.system.files import write_atomically


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


def write_classes(folder: Path, classes: Sequence[str]) -> None:
    """Write classes.json: the meaning of the values in a folder's masks."""
    names = {"0": "background", **{str(i): name for i, name in enumerate(classes, 1)}, "255": "void"}
    write_atomically(folder / "classes.json", json.dumps(names, indent=1, ensure_ascii=False) + "\n")
