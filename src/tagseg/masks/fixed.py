"""Parts of a mask that a person fixed: clicked regions are seeds for the dense CRF, brush strokes are final."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from tagseg.crf.lattice import SMALLEST
from tagseg.data.records import VOID
from tagseg.run.taught import Answer


def seed_labels(
    parts: Sequence[Answer], ids: Mapping[str, int], classes: Sequence[int], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
    """Return the label of every pixel that a click fixes: 0 for background, the position of the class in `classes`
    (from 1), or `VOID` where nothing is fixed. Later clicks overrule earlier ones; classes that are not among the
    image's are left out: tags bound what a mask may hold.

    Args:
        parts: the clicks and strokes of the image.
        ids: class ids by name.
        classes: the class ids of the image's maps.
        size: (height, width) in pixels.
    """
    labels = np.full(size, VOID, np.uint8)
    for part in parts:
        label = _label(part, ids, classes)
        if part.grid is None or label is None:
            continue
        rows, columns = part.grid
        for x, y in part.places[0].points:
            row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
            top, bottom = (round(edge * size[0] / rows) for edge in (row, row + 1))
            left, right = (round(edge * size[1] / columns) for edge in (column, column + 1))
            labels[top:bottom, left:right] = label
    return labels


def hold_seeds(
    probabilities: Float32[np.ndarray, "l h w"], seeds: UInt8[np.ndarray, "h w"]
) -> Float32[np.ndarray, "l h w"]:
    """Return the probabilities with those of seeds as certain as the dense CRF allows; it may still move one that all
    its neighbours contradict, so they are held again after it."""
    held: Float32[np.ndarray, "l h w"] = probabilities.copy()
    fixed = seeds != VOID
    held[:, fixed] = SMALLEST
    held[seeds[fixed], fixed] = 1.0
    return held


def paint_strokes(
    mask: UInt8[np.ndarray, "H W"], parts: Sequence[Answer], ids: Mapping[str, int], classes: Sequence[int]
) -> UInt8[np.ndarray, "H W"]:
    """Return a mask with the strokes of brush (a class) and eraser (background) painted over it, in order."""
    strokes = [part for part in parts if part.kind == "brush" and _label(part, ids, classes) is not None]
    if not strokes:
        return mask
    picture = Image.fromarray(mask)
    pen, (width, height) = ImageDraw.Draw(picture), picture.size
    for stroke in strokes:
        colour, radius = ids.get(stroke.name, 0), max(stroke.radius * max(width, height), 0.5)
        points = [(x * width, y * height) for x, y in stroke.places[0].points]
        if len(points) > 1:
            pen.line(points, fill=colour, width=max(round(2 * radius), 1))
        for x, y in points:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    painted: UInt8[np.ndarray, "H W"] = np.array(picture)
    return painted


def _label(part: Answer, ids: Mapping[str, int], classes: Sequence[int]) -> int | None:
    if part.meaning == "background":
        return 0
    found = ids.get(part.name)
    return classes.index(found) + 1 if found in classes else None
