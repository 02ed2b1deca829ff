"""Pictures of clusters: crops of photographs around their cells, outlined, one by one or on one sheet."""

import numpy as np
from jaxtyping import Bool
from PIL import Image

from tagseg.data.images import read_image, reduced_size
from tagseg.masks.palette import shown_colours
from tagseg.report.atlas_data import enlarged
from tagseg.report.crops import OutlineColour, crop_region
from tagseg.report.overlay import draw_mask
from tagseg.teaching.lesson import Lesson

CROPPED_SIDE = 640
"""Larger photographs are reduced to this long side, in pixels, before they are cropped."""

SHEET_COLUMNS, GAP = 4, 6


def read_photo(lesson: Lesson, place: int, side: int = CROPPED_SIDE) -> Image.Image:
    """Return an image, by its position among the tagged ones, with a long side of at most `side` pixels.

    Raises:
        DataError: when it cannot be read.
    """
    limit = lesson.run.settings().data.max_megapixels
    image = read_image(lesson.cells.samples[place].image, limit, side)
    size = reduced_size(image.size, side)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def draw_crop(lesson: Lesson, place: int, shape: Bool[np.ndarray, "h w"], colour: OutlineColour) -> Image.Image:
    """Return the part of an image around some of its cells, with these outlined."""
    photo = read_photo(lesson, place)
    return crop_region(photo, enlarged(lesson.network, shape, photo), colour)


def draw_sheet(lesson: Lesson, shapes: list[tuple[int, Bool[np.ndarray, "_ _"]]], tag: int) -> Image.Image:
    """Return one picture of several crops, in rows; the outlines have the colour of the tag."""
    colour = shown_colours(len(lesson.classes))[tag]
    crops = [draw_crop(lesson, place, shape, colour) for place, shape in shapes]
    width, height = (max(one.size[axis] for one in crops) + GAP for axis in (0, 1))
    rows = -(-len(crops) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (width * min(len(crops), SHEET_COLUMNS), height * rows), "white")
    for number, one in enumerate(crops):
        sheet.paste(one, (width * (number % SHEET_COLUMNS), height * (number // SHEET_COLUMNS)))
    return sheet


def draw_beliefs(lesson: Lesson, place: int, side: int) -> tuple[Image.Image, Image.Image]:
    """Return an image and its mask as the bank decides it now, without the dense CRF, both of at most `side` pixels."""
    photo = read_photo(lesson, place, side)
    tags = lesson.cells.samples[place].tags
    shares = lesson.network.backbone.enlarge(lesson.beliefs.shares[place].float()[None], (photo.height, photo.width))[0]
    mask = np.array((0, *tags), np.uint8)[shares.argmax(0).numpy()]
    return photo, draw_mask(mask, photo.width, photo.height)
