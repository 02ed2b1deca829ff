"""LabelMe's JSON: one file per image, with masks or polygons."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from pycocotools import mask as coco_rle

from tagseg.data.images import require_size
from tagseg.data.mask_values import known_names
from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError
from tagseg.importing.match import Corrected
from tagseg.system.untrusted import shown


def is_labelme(content: object) -> bool:
    """Tell whether JSON is LabelMe's description of an image."""
    return isinstance(content, dict) and "shapes" in content and "imagePath" in content


def read_labelme(file: Path, content: dict[str, Any], dataset: Dataset) -> Corrected:
    """Return the mask of a LabelMe file: its shapes in order, so that later ones cover earlier ones."""
    ids, shapes = known_names(dataset.classes), content["shapes"]
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{file}: got shapes {shown(shapes)}, expected a list of objects")

    def draw(sample: Sample, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        stated = (content.get("imageHeight"), content.get("imageWidth"))
        if stated != (None, None):  # old versions state no size
            require_size(sample.image, stated, size)
        mask = np.zeros(size, np.uint8)
        for shape in shapes:
            if (label := shape.get("label")) not in ids:
                raise DataError(f"{file}: unknown label {shown(label)}, expected one of {', '.join(ids)}")
            try:
                mask[_pixels(shape, size)] = ids[label]
            except (KeyError, TypeError, ValueError, OSError) as error:
                raise DataError(f"{file}: a shape with the label {label} cannot be drawn ({error})") from error
        return mask

    beside = file.with_suffix("").name
    return Corrected((str(content["imagePath"]), beside), draw, empty=not shapes)


def _pixels(shape: dict[str, Any], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    kind, points = shape.get("shape_type"), np.array(shape["points"], np.float64).reshape(-1, 2)
    if not (np.abs(points) <= 1e6).all():
        raise ValueError("a point is far outside the image")
    if kind == "mask":
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)) as picture:
            part = np.array(picture.convert("L")) > 0
        left, top = np.rint(points[0]).astype(int).tolist()
        drawn = np.zeros(size, bool)
        inside = drawn[top : top + part.shape[0], left : left + part.shape[1]]
        if left < 0 or top < 0 or inside.shape != part.shape:
            raise ValueError("its mask does not lie in the image")
        inside |= part
        return drawn
    if kind not in ("polygon", None) or len(points) < 3:
        raise ValueError(f"it is a {kind} of {len(points)} points, expected a mask or a polygon")
    code = coco_rle.merge(coco_rle.frPyObjects([points.ravel().tolist()], *size))
    return np.asarray(coco_rle.decode(code), bool)
