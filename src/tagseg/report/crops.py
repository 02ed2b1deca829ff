"""Pictures of regions: a crop of the photo around each region, with its outline drawn and the rest dimmed."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageChops, ImageEnhance, ImageFilter

from tagseg.data.images import reduced_size

CROP_SIDE = 160
"""Long side of a crop, in pixels."""

ASPECT = 4 / 3
"""Width to height of a crop, if the photo is large enough."""

MARGIN = 0.1
"""Space around the region on every side, as a share of the region's size."""

SMALLEST_CROP = 0.35
"""A crop shows at least this share of the photo's long side, because context helps to recognise a region."""

SUPERSAMPLING = 2
"""Pictures are drawn this many times larger and then reduced, which smooths the outlines."""

OutlineColour = tuple[int, int, int]


def crop_region(
    photo: Image.Image, shape: Bool[np.ndarray, "h w"], colour: OutlineColour, side: int = CROP_SIDE
) -> Image.Image:
    """Return the part of a photo around a region (`shape`, at the photo's size), with the region outlined."""
    box = crop_box(shape)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = side / max(width, height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    fine = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
    part = photo.resize(fine, Image.Resampling.BICUBIC, box, reducing_gap=2.0)
    inside = _resized(Image.fromarray(shape).convert("L").crop(box), fine)
    dim = ImageEnhance.Brightness(ImageEnhance.Color(part).enhance(0.25)).enhance(0.45)
    drawn = Image.composite(part, dim, inside)
    return _ringed(drawn, inside, colour, outward=True).resize(size, Image.Resampling.LANCZOS)


def outline_regions(
    photo: Image.Image, regions: Sequence[tuple[Bool[np.ndarray, "_ _"], OutlineColour]], side: int
) -> Image.Image:
    """Return a whole photo, at most `side` pixels long, with every region outlined in its colour."""
    size = reduced_size(photo.size, side)
    fine = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
    drawn = photo.resize(fine, Image.Resampling.BICUBIC, reducing_gap=2.0)
    for shape, colour in regions:
        # On the inner side, so that the lines of neighbours are next to each other.
        drawn = _ringed(drawn, _resized(Image.fromarray(shape).convert("L"), fine), colour, outward=False)
    return drawn.resize(size, Image.Resampling.LANCZOS)


def crop_box(shape: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom, in pixels, of the crop for a region of at least one pixel.

    The crop contains the whole region and a margin, and is as close to 4:3 as the photo allows.
    """
    sides = [np.flatnonzero(shape.any(axis)) for axis in (0, 1)]
    (left, right), (top, bottom) = ((int(at[0]), int(at[-1]) + 1) for at in sides)
    height, width = shape.shape
    least = SMALLEST_CROP * max(height, width)
    wide, tall = ((high - low) * (1 + 2 * MARGIN) for low, high in ((left, right), (top, bottom)))
    wide = max(wide, tall * ASPECT, least)
    tall = wide / ASPECT
    x, y = _within((left + right) / 2, wide, width), _within((top + bottom) / 2, tall, height)
    return x[0], y[0], x[1], y[1]


def _within(middle: float, length: float, limit: int) -> tuple[int, int]:
    """Return start and stop of an interval around `middle`, shifted and then cut to lie in 0..limit."""
    whole = min(round(length), limit)
    start = min(max(round(middle - whole / 2), 0), limit - whole)
    return start, start + whole


def _resized(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    return mask.resize(size, Image.Resampling.BILINEAR).point([0] * 128 + [255] * 128)


def _ringed(picture: Image.Image, inside: Image.Image, colour: OutlineColour, outward: bool) -> Image.Image:
    """Draw a line along the mask's border, on its outer or inner side, in the colour with a white edge."""
    for thickness, paint in ((5, (255, 255, 255)), (3, colour)):
        size = 2 * thickness + 1
        moved = inside.filter(ImageFilter.MaxFilter(size) if outward else ImageFilter.MinFilter(size))
        ring = ImageChops.difference(moved, inside)
        picture = Image.composite(Image.new("RGB", picture.size, paint), picture, ring)
    return picture
