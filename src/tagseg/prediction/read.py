"""Images as the network gets them: read from wherever they lie, at the resolution of the prediction.

Nothing here needs PyTorch: a process that only reads images starts in no time and takes little memory.
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
class Read:
    """An image that has been read: its outputs' name, where it lies and (height, width), or why it could not be
    read."""

    name: str
    path: Location
    size: tuple[int, int] = (0, 0)
    error: str = ""


def read_picture(
    name: str, location: Location, resolution: Resolution, max_megapixels: float
) -> tuple[Read, UInt8[np.ndarray, "h w 3"] | None]:
    """Return what became of reading an image, and its picture, if it could be read."""
    try:
        image = open_image(location, max_megapixels)
    except DataError as error:
        return Read(name, location, error=str(error)), None
    return Read(name, location, (image.height, image.width)), resize_to_picture(image, resolution)


def open_image(location: Location, max_megapixels: float) -> Image.Image:
    """Return the image that lies in a file or at a URL, as `read_image` does.

    Raises:
        DataError: as `read_image`, and when it cannot be fetched.
    """
    if isinstance(location, str):
        return read_image(location, max_megapixels, content=fetch_url(location))
    return read_image(location, max_megapixels)
