"""Draw COCO's segmentations, polygons and run-length codes, after checking them."""

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
"""The longest outline of a polygon, and of all polygons of an image, in pixels: memory and time grow with it."""


def draw(mask: CocoMask, image: Path) -> UInt8[np.ndarray, "h w"]:
    """Return a mask in class ids: objects painted from large to small, crowds void except where there is an object.

    Raises:
        DataError: with the name of `image`, when a segmentation is invalid.
    """
    check_segments(mask, image)
    objects = []
    drawn = np.zeros((mask.height, mask.width), np.uint8)
    for class_id, segmentation, crowd in mask.segments:
        code = _code(segmentation, mask.height, mask.width)
        if crowd:
            drawn[coco_rle.decode(code).astype(bool)] = VOID
        else:
            objects.append((int(coco_rle.area(code)), class_id, code))
    # Decoded one at a time: all objects as pixels could fill the memory, as codes they are small.
    for _, class_id, code in sorted(objects, key=lambda one: -one[0]):
        drawn[coco_rle.decode(code).astype(bool)] = class_id
    return drawn


def check_segments(mask: CocoMask, image: Path) -> int:
    """Check that all segmentations of an image can be drawn, without drawing them; return how many have no area.

    Raises:
        DataError: with the name of `image` and the number of the annotation, when a segmentation is invalid.
    """
    left, slivers, at = float(_MAX_OUTLINES), 0, 0
    try:
        if not (mask.height > 0 and mask.width > 0 and mask.height * mask.width <= _MAX_PIXELS):
            raise ValueError(f"an image of {shown(mask.width)} x {shown(mask.height)} pixels")
        for _, segmentation, _ in mask.segments:
            at += 1
            left -= _outline_length(segmentation)
            if left < 0:
                raise ValueError(f"all outlines together have more than {_MAX_OUTLINES} pixels")
            slivers += not _has_area(segmentation, mask.height, mask.width)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        which = f"{at} of {len(mask.segments)}: " if at else ""
        raise DataError(f"{image}: a segmentation of its COCO annotations cannot be drawn ({which}{error})") from error
    return slivers


def _has_area(segmentation: Any, height: int, width: int) -> bool:
    if not isinstance(segmentation, list):
        return sum(_counts(segmentation, height, width)[1::2]) > 0
    for polygon in segmentation:
        points = np.array(polygon, np.float64).reshape(-1, 2)
        x, y = points[:, 0], points[:, 1]
        if len(points) >= 3 and abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) > 0:
            return True
    return False


def _outline_length(segmentation: Any) -> float:
    """Return the length of the outlines of polygons, in pixels along the longer axis; 0 for a run-length code.

    pycocotools does not check coordinates; with huge ones, NaN or other types its behaviour is undefined.
    """
    if not isinstance(segmentation, list):
        return 0.0
    if segmentation and all(_is_coordinate(number) for number in segmentation):
        raise ValueError("got a flat list of coordinates, expected a list of polygons: [[x1, y1, x2, y2, ...]]")
    total = 0.0
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(_is_coordinate(number) for number in polygon):
            raise ValueError(f"got {shown(polygon)}, expected a polygon: a list of coordinates")
        if len(polygon) % 2:
            raise ValueError("a polygon must have an even number of coordinates")
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
    """Return pycocotools' code of one segmentation: of polygons, or of a plain or compressed run-length code."""
    if isinstance(segmentation, list):
        # pycocotools would take four numbers for a box; a polygon of two points encloses nothing.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        drawn = coco_rle.frPyObjects(polygons, height, width) if polygons else []
        code: dict[str, Any] = coco_rle.merge(drawn) if drawn else _runs([height * width], height, width)
        return code
    return _runs(_counts(segmentation, height, width), height, width)


def _counts(segmentation: Any, height: int, width: int) -> list[int]:
    """Return the run lengths of a plain or compressed run-length code after checking them."""
    if not isinstance(segmentation, dict):
        raise ValueError(f"got {shown(segmentation)}, expected polygons or a run-length code")
    if segmentation["size"] != [height, width]:
        raise ValueError(f"a run-length code of size {shown(segmentation['size'])}, expected {[height, width]}")
    counts = segmentation["counts"]
    counts = counts if isinstance(counts, list) else _run_lengths(counts)
    if not all(isinstance(count, int) and not isinstance(count, bool) for count in counts):
        raise ValueError(f"got run lengths {shown(counts)}, expected whole numbers")
    # With any other sum, pycocotools writes past the end or leaves pixels unset.
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise ValueError(f"run lengths must be at least 0 and add up to {height} x {width} pixels")
    return counts


def _runs(counts: list[int], height: int, width: int) -> dict[str, Any]:
    code: dict[str, Any] = coco_rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return code


def _run_lengths(code: object) -> list[int]:
    """Decode COCO's compressed run lengths: groups of five bits, lowest first; differences from the fourth on."""
    if not isinstance(code, str):
        raise ValueError(f"got run lengths {shown(code)}, expected a list or text")
    counts: list[int] = []
    value = shift = 0
    for letter in code:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"a compressed run-length code has {letter!r} in an impossible place")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (1 << shift) if bits & 0x10 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("a compressed run-length code is cut off")
    return counts
