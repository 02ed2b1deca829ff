"""Read images from files and URLs, at the resolution of the prediction.

This module imports no PyTorch: a process that only reads images starts quickly and needs little memory.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tagseg.data.images import read_image
from tagseg.errors import DataError
from tagseg.prediction.find_images import Location
from tagseg.prediction.remote import fetch_url
from tagseg.segment.resolution import Resolution, resize_to_picture


@dataclass(frozen=True)
class InputImage:
    """An image after reading: the name of its outputs, its location, and its (height, width) in pixels or, if it could
    not be read, the error."""

    name: str
    location: Location
    size: tuple[int, int] = (0, 0)
    error: str = ""


def read_input(
    name: str, location: Location, resolution: Resolution, max_megapixels: float
) -> tuple[InputImage, UInt8[np.ndarray, "h w 3"] | None]:
    """Read an image and return it with its picture, the pixels that the network sees (None if it cannot be read)."""
    try:
        image = open_image(location, max_megapixels)
    except DataError as error:
        return InputImage(name, location, error=str(error)), None
    return InputImage(name, location, (image.height, image.width)), resize_to_picture(image, resolution)


def open_image(location: Location, max_megapixels: float) -> Image.Image:
    """Return the image in a file or at a URL as RGB, see `read_image`.

    Raises:
        DataError: as `read_image`, and if the image cannot be fetched.
    """
    if isinstance(location, str):
        return read_image(location, max_megapixels, content=fetch_url(location))
    return read_image(location, max_megapixels)
