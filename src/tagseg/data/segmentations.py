"""COCO's segmentations as masks: polygons and run-length codes, checked before anything is drawn."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco_rle

from tagseg.data.records import VOID, CocoMask
from tagseg.errors import DataError
from tagseg.system.untrusted import shown

_MAX_PIXELS = 1 << 28
_MAX_OUTLINE, _MAX_OUTLINES = 1_000_000, 10_000_000
"""Pixels that a polygon's outline, and an image's together, may be long: memory and time grow with them."""


def draw(mask: CocoMask, image: Path) -> UInt8[np.ndarray, "h w"]:
    """Return a mask in class ids: objects painted large before small, crowds void where no object lies.

    Raises:
        DataError: naming `image`, when a segmentation is none.
    """
    objects = []
    left = float(_MAX_OUTLINES)
    try:
        if not (mask.height > 0 and mask.width > 0 and mask.height * mask.width <= _MAX_PIXELS):
            raise ValueError(f"an image of {shown(mask.width)} x {shown(mask.height)} pixels")
        drawn = np.zeros((mask.height, mask.width), np.uint8)
        for class_id, segmentation, crowd in mask.segments:
            left -= _outline(segmentation)
            if left < 0:
                raise ValueError(f"outlines of more than {_MAX_OUTLINES} pixels together")
            code = _code(segmentation, mask.height, mask.width)
            if crowd:
                drawn[coco_rle.decode(code).astype(bool)] = VOID
            else:
                objects.append((int(coco_rle.area(code)), class_id, code))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise DataError(f"{image}: a segmentation of its COCO annotations cannot be drawn ({error})") from error
    # As codes they take little memory; as pixels all at once they could fill it.
    for _, class_id, code in sorted(objects, key=lambda one: -one[0]):
        drawn[coco_rle.decode(code).astype(bool)] = class_id
    return drawn


def _outline(segmentation: Any) -> float:
    """How long the outlines of polygons are, in pixels along the longer axis; 0 for a run-length code.

    pycocotools takes coordinates as they come: enormous ones, and what is no number, would lead it anywhere.
    """
    if not isinstance(segmentation, list):
        return 0.0
    total = 0.0
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(_is_coordinate(number) for number in polygon):
            raise ValueError(f"got {shown(polygon)}, expected a polygon: a list of coordinates")
        if len(polygon) % 2:
            raise ValueError("a polygon with an odd number of coordinates")
        points = np.array(polygon, np.float64).reshape(-1, 2)
        length = float(np.abs(points - np.roll(points, 1, axis=0)).max(1, initial=0).sum())
        if length > _MAX_OUTLINE:
            raise ValueError(f"an outline of {length:.3g} pixels, expected at most {_MAX_OUTLINE}")
        total += length
    return total


def _is_coordinate(number: object) -> bool:
    kind = isinstance(number, int | float) and not isinstance(number, bool)
    return kind and -_MAX_OUTLINE <= number <= _MAX_OUTLINE and not math.isnan(number)  # type: ignore[operator,arg-type]


def _code(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """pycocotools' code of one segmentation: polygons, or a run-length code, plain or compressed."""
    if isinstance(segmentation, list):
        # pycocotools takes four numbers for a box; as a polygon they enclose nothing.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        drawn = coco_rle.frPyObjects(polygons, height, width) if polygons else []
        code: dict[str, Any] = coco_rle.merge(drawn) if drawn else _runs([height * width], height, width)
        return code
    if not isinstance(segmentation, dict):
        raise ValueError(f"got {shown(segmentation)}, expected polygons or a run-length code")
    if segmentation["size"] != [height, width]:
        raise ValueError(f"run-length code of size {shown(segmentation['size'])}, expected {[height, width]}")
    counts = segmentation["counts"]
    counts = counts if isinstance(counts, list) else _run_lengths(counts)
    if not all(isinstance(count, int) and not isinstance(count, bool) for count in counts):
        raise ValueError(f"run lengths {shown(counts)}, expected whole numbers")
    # pycocotools writes past the end, or leaves pixels unset, when they do not add up.
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"run lengths that do not add up to {height} x {width} pixels")
    return _runs(counts, height, width)


def _runs(counts: list[int], height: int, width: int) -> dict[str, Any]:
    code: dict[str, Any] = coco_rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return code


def _run_lengths(code: object) -> list[int]:
    """Run lengths of COCO's compressed code: groups of five bits, lowest first; from the fourth on, differences."""
    if not isinstance(code, str):
        raise ValueError(f"run lengths {shown(code)}, expected a list or text")
    counts: list[int] = []
    value = shift = 0
    for letter in code:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"a compressed run-length code with {letter!r} where it cannot be")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (1 << shift) if bits & 0x10 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("a compressed run-length code that breaks off")
    return counts
