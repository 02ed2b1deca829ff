"""CVAT's own format "CVAT for images 1.1": masks and polygons in annotations.xml."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco_rle

from tagseg.data.images import require_size
from tagseg.data.mask_values import known_names
from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError
from tagseg.importing.match import Corrected
from tagseg.system.untrusted import read_bytes

_SHAPES = ("mask", "polygon")
_OTHERS = ("box", "ellipse", "cuboid", "polyline", "points", "skeleton")


def read_cvat_xml(file: Path, dataset: Dataset) -> list[Corrected]:
    """Return the masks of all images of an annotations.xml; later shapes and higher layers cover the others.

    Raises:
        DataError: when the file is not CVAT's.
    """
    content = read_bytes(file)
    # The parser expands entities, which only a document type can define.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise DataError(f"{file}: has a document type, expected CVAT's annotations.xml without one")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f"{file}: not valid XML ({error})") from error
    if root.tag != "annotations":
        raise DataError(f'{file}: got <{root.tag}>, expected <annotations> of "CVAT for images 1.1"')
    ids = known_names(dataset.classes)
    return [_corrected(file, image, ids) for image in root.iter("image")]


def _corrected(file: Path, image: ElementTree.Element, ids: Any) -> Corrected:
    name = image.get("name", "")
    shapes = sorted((one for one in image if one.tag in _SHAPES), key=_layer)

    def draw(sample: Sample, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        if other := next((one.tag for one in image if one.tag in _OTHERS), None):
            raise DataError(f"{file}: {name} has a {other}, expected masks or polygons")
        try:
            require_size(sample.image, (int(image.get("height", "0")), int(image.get("width", "0"))), size)
            mask = np.zeros(size, np.uint8)
            for shape in shapes:
                if (label := shape.get("label", "")) not in ids:
                    raise DataError(f"{file}: unknown label {label!r}, expected one of {', '.join(ids)}")
                if shape.tag == "polygon":
                    points = [float(part) for pair in shape.get("points", "").split(";") for part in pair.split(",")]
                    if len(points) < 6 or len(points) % 2 or not all(abs(point) <= 1e6 for point in points):
                        raise ValueError("a polygon needs three points in the image")
                    code = coco_rle.merge(coco_rle.frPyObjects([points], *size))
                    mask[coco_rle.decode(code).astype(bool)] = ids[label]
                else:
                    _paint_mask(mask, shape, ids[label])
            return mask
        except DataError:
            raise
        except (ValueError, OverflowError) as error:
            raise DataError(f"{file}: a shape of {name} cannot be drawn ({error})") from error

    return Corrected((name,), draw, empty=not shapes)


def _layer(shape: ElementTree.Element) -> int:
    order = shape.get("z_order", "0")
    return int(order) if order.lstrip("-").isdecimal() else 0


def _paint_mask(mask: UInt8[np.ndarray, "h w"], shape: ElementTree.Element, class_id: int) -> None:
    """Paint a mask: run lengths along the rows of its box, the first run outside."""
    left, top, width, height = (int(shape.get(key, "-1")) for key in ("left", "top", "width", "height"))
    if left < 0 or top < 0 or width < 1 or height < 1 or top + height > mask.shape[0] or left + width > mask.shape[1]:
        raise ValueError("its box is not in the image")
    runs = [int(run) for run in shape.get("rle", "").split(",")]
    if any(run < 0 for run in runs) or sum(runs) != width * height:
        raise ValueError(f"its run lengths must add up to {width} x {height} pixels")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    mask[top : top + height, left : left + width][inside] = class_id
