"""The colours of masks: Pascal VOC's colour map, used in mask files, pictures and the report."""

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


def png_palette() -> list[int]:
    """Return the palette of PNG masks: 256 colours as 768 numbers (0..255), with id 255 (unsure) in `VOID_COLOUR`."""
    colours = class_colours(255)
    colours[VOID] = VOID_COLOUR
    return [channel for colour in colours for channel in colour]


def _colour(index: int) -> tuple[int, int, int]:
    code = voc_colour(index)
    return code >> 16, code >> 8 & 255, code & 255
