"""Masks to draw over photos, and pictures as bytes; in its own module so that it never imports torch."""

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tagseg.data.images import read_image, read_mask_file
from tagseg.data.records import VOID
from tagseg.masks.mask_files import mask_file
from tagseg.masks.overlay import overlay
from tagseg.masks.palette import VOID_COLOUR, shown_colours
from tagseg.run.folder import Run

STRIPE = 3
"""Width of the stripes that mark unsure pixels, in pixels of a picture whose long side is 480 pixels."""


def draw_mask(mask: UInt8[np.ndarray, "h w"], width: int, height: int, stripe: int = STRIPE) -> Image.Image:
    """Return a mask as a palette picture of the given size, in class colours, with unsure pixels striped.

    Index 0 (background) is meant to be transparent; stripes are `stripe` pixels wide.
    """
    drawn = np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    y, x = np.ogrid[:height, :width]
    # Unsure areas are painted only on the stripes, so that the photo shows between them.
    drawn[(drawn == VOID) & ((x + y) % (2 * stripe) >= stripe)] = 0
    picture = Image.fromarray(drawn)
    colours = shown_colours(VOID)
    colours[VOID] = VOID_COLOUR
    picture.putpalette([channel for colour in colours for channel in colour])
    return picture


def masked_photo(run: Run, sample_id: str, image: str, side: int) -> Image.Image:
    """Return a training photograph (its path in the data folder) with the run's mask over it, reduced to a long side of
    `side` pixels.

    Raises:
        DataError: when photograph or mask cannot be read, or they differ in size.
    """
    photo = read_image(run.data_root() / image, run.settings().data.max_megapixels)
    mask = read_mask_file(mask_file(run.final().masks, sample_id), (photo.height, photo.width))
    picture = overlay(photo, mask)
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    return picture


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a picture as the bytes of a file of `kind` (jpeg, png); `options` are those of Pillow's writer."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """Return a picture as a data URI; `options` as for `encoded`."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded(picture, kind, **options)).decode('ascii')}"
