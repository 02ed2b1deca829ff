"""The colours of masks: Pascal VOC's colour map in mask files, and colours that show on dark photographs on screen."""

import colorsys

from tagseg.data.mask_values import VOID_CODE, voc_colour
from tagseg.data.records import VOID

VOID_COLOUR = (VOID_CODE >> 16, VOID_CODE >> 8 & 255, VOID_CODE & 255)
"""Colour of unsure pixels, as in Pascal VOC's own mask files."""


def class_colours(n: int) -> list[tuple[int, int, int]]:
    """Return the RGB colours (0..255) of ids 0 to `n`: entry `i` is class id `i`, entry 0 the background.

    Raises:
        ValueError: when `n` is not in the range 0 to 255.
    """
    if not 0 <= n <= 255:
        raise ValueError(f"class colours: the last id must be 0 to 255, got {n}")
    return [_colour(index) for index in range(n + 1)]


_SHOWN = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (64, 140, 255)),
    *((255, 170, 187), (187, 204, 51), (153, 221, 255), (238, 136, 102), (68, 187, 153), (221, 221, 221)),
)
"""Colours of the first classes on screen: Okabe and Ito's (2008) with a lighter blue, then Tol's light scheme (2021);
people with any colour vision tell the first seven apart, and all of them from a black photograph."""

_TURN = 0.618034
"""Step around the circle of hues, as a share of it, of the classes after these: the golden ratio, so none repeats."""


def shown_colours(n: int) -> list[tuple[int, int, int]]:
    """Return the RGB colours (0..255) in which ids 0 to `n` are shown over photographs; entry 0 is black, for the
    background. Mask files have those of `class_colours`.

    >>> shown_colours(2)
    [(0, 0, 0), (230, 159, 0), (86, 180, 233)]
    """
    more = range(max(n - len(_SHOWN), 0))
    return [(0, 0, 0), *_SHOWN[:n], *(_light(number) for number in more)]


def _light(number: int) -> tuple[int, int, int]:
    lightness = (0.62, 0.78)[number % 2]
    red, green, blue = colorsys.hls_to_rgb(number * _TURN % 1, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def png_palette() -> list[int]:
    """Return the palette of PNG masks: 256 colours as 768 numbers (0..255), with id 255 (unsure) in `VOID_COLOUR`."""
    colours = class_colours(255)
    colours[VOID] = VOID_COLOUR
    return [channel for colour in colours for channel in colour]


def _colour(index: int) -> tuple[int, int, int]:
    code = voc_colour(index)
    return code >> 16, code >> 8 & 255, code & 255
