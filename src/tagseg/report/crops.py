"""Regions as pictures: a crop of the photo around each, its outline drawn, what lies outside dimmed."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageChops, ImageEnhance, ImageFilter

from tagseg.data.images import reduced_size

SIDE = 160
"""Long side of a crop in pixels."""

ASPECT = 4 / 3
"""Width to height of a crop, where the photo has room for it."""

MARGIN = 0.1
"""Space around the region on every side, as a share of its own size."""

LEAST = 0.35
"""A crop shows at least this share of the photo's long side: a region is known by what is around it."""

FINE = 2
"""Pictures are drawn so many times larger and then reduced, which smooths the outlines."""

OutlineColour = tuple[int, int, int]


def crop_region(
    photo: Image.Image, shape: Bool[np.ndarray, "h w"], colour: OutlineColour, side: int = SIDE
) -> Image.Image:
    """Return the photo's part around a region (`shape`, of the photo's size), outlined, the rest of it dimmed."""
    box = crop_box(shape)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = side / max(width, height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    fine = size[0] * FINE, size[1] * FINE
    part = photo.resize(fine, Image.Resampling.BICUBIC, box, reducing_gap=2.0)
    inside = _resized(Image.fromarray(shape).convert("L").crop(box), fine)
    dim = ImageEnhance.Brightness(ImageEnhance.Color(part).enhance(0.25)).enhance(0.45)
    drawn = Image.composite(part, dim, inside)
    return _ringed(drawn, inside, colour, outward=True).resize(size, Image.Resampling.LANCZOS)


def outline_regions(
    photo: Image.Image, regions: Sequence[tuple[Bool[np.ndarray, "_ _"], OutlineColour]], side: int
) -> Image.Image:
    """Return the whole photo, reduced to a long side of `side` pixels, with every region outlined in its colour."""
    size = reduced_size(photo.size, side)
    fine = size[0] * FINE, size[1] * FINE
    drawn = photo.resize(fine, Image.Resampling.BICUBIC, reducing_gap=2.0)
    for shape, colour in regions:
        # On the inner side, so that the lines of neighbours stand side by side.
        drawn = _ringed(drawn, _resized(Image.fromarray(shape).convert("L"), fine), colour, outward=False)
    return drawn.resize(size, Image.Resampling.LANCZOS)


def crop_box(shape: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Return the part to show of a photo with a region of at least one pixel: left, top, right, bottom in pixels.

    It holds the whole region, a margin around it, and is as nearly 4:3 as the photo allows.
    """
    sides = [np.flatnonzero(shape.any(axis)) for axis in (0, 1)]
    (left, right), (top, bottom) = ((int(at[0]), int(at[-1]) + 1) for at in sides)
    height, width = shape.shape
    least = LEAST * max(height, width)
    wide, tall = ((high - low) * (1 + 2 * MARGIN) for low, high in ((left, right), (top, bottom)))
    wide = max(wide, tall * ASPECT, least)
    tall = wide / ASPECT
    x, y = _within((left + right) / 2, wide, width), _within((top + bottom) / 2, tall, height)
    return x[0], y[0], x[1], y[1]


def _within(middle: float, length: float, limit: int) -> tuple[int, int]:
    """From and to of a stretch around `middle`, pushed and then cut to lie in 0..limit."""
    whole = min(round(length), limit)
    start = min(max(round(middle - whole / 2), 0), limit - whole)
    return start, start + whole


def _resized(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    return mask.resize(size, Image.Resampling.BILINEAR).point([0] * 128 + [255] * 128)


def _ringed(picture: Image.Image, inside: Image.Image, colour: OutlineColour, outward: bool) -> Image.Image:
    """Draw a line along the mask's border, on its outer or inner side, in the colour and, beyond it, white."""
    for thickness, paint in ((5, (255, 255, 255)), (3, colour)):
        size = 2 * thickness + 1
        moved = inside.filter(ImageFilter.MaxFilter(size) if outward else ImageFilter.MinFilter(size))
        ring = ImageChops.difference(moved, inside)
        picture = Image.composite(Image.new("RGB", picture.size, paint), picture, ring)
    return picture
