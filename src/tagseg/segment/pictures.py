"""Images as the network gets them: read from wherever they lie, at the resolution of the prediction.

Nothing here needs PyTorch: a process that only reads images starts in no time and takes little memory.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tagseg.data.images import read_image, reduction
from tagseg.data.records import DataError
from tagseg.segment.inputs import Location
from tagseg.segment.remote import fetch

CELL = 4
"""Side in pixels of the cells that probabilities found in windows are kept for: a quarter of the resolution, as fine as
networks see, with a sixteenth of the memory."""


@dataclass(frozen=True)
class Read:
    """An image that has been read: its outputs' name, where it lies and (height, width), or why it could not be
    read."""

    name: str
    path: Location
    size: tuple[int, int] = (0, 0)
    error: str = ""


@dataclass(frozen=True)
class Resolution:
    """At which resolution images are predicted: larger ones are reduced to a long side of `max_side` (0: never); what
    still exceeds `window` is predicted in windows."""

    max_side: int
    window: int


def read_picture(
    name: str, location: Location, resolution: Resolution, max_megapixels: float
) -> tuple[Read, UInt8[np.ndarray, "h w 3"] | None]:
    """Return what became of reading an image, and its picture, if it could be read."""
    try:
        image = open_image(location, max_megapixels)
    except DataError as error:
        return Read(name, location, error=str(error)), None
    return Read(name, location, (image.height, image.width)), picture(image, resolution)


def open_image(location: Location, max_megapixels: float) -> Image.Image:
    """Return the image that lies in a file or at a URL, as `read_image` does.

    Raises:
        DataError: as `read_image`, and when it cannot be fetched.
    """
    if isinstance(location, str):
        return read_image(location, max_megapixels, content=fetch(location))
    return read_image(location, max_megapixels)


def picture(image: Image.Image, resolution: Resolution) -> UInt8[np.ndarray, "h w 3"]:
    """Return an RGB image at the resolution of the prediction."""
    reduce = reduction(image, resolution.max_side) if resolution.max_side else 1.0
    w, h = (max(round(side * reduce), 1) for side in image.size)
    if max(h, w) > resolution.window:
        h, w = (max(round(side / CELL), 1) * CELL for side in (h, w))
    return np.array(image.resize((w, h), Image.Resampling.BICUBIC, reducing_gap=2.0))
