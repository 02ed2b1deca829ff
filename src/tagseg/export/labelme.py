"""LabelMe's JSON: one file per image, next to the image, with exact masks or polygons."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tagseg.errors import DataError
from tagseg.export.masks import MaskedImage, MaskSet, read_mask
from tagseg.export.outlines import polygon
from tagseg.export.regions import Region, regions
from tagseg.settings.export import ExportSettings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track
from tagseg.system.records import json_text

_VERSION = "6.3.1"
"""The version of LabelMe whose files these are; masks need 5.3 or newer."""


def write_labelme(masks: MaskSet, folder: Path, settings: ExportSettings, track: Track) -> None:
    """Write `ID.json` for each image, and labels.txt for `labelme --labels`.

    Raises:
        DataError: when a mask cannot be read, or labels.txt cannot hold a class name.
    """
    for name in masks.classes:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise DataError(f"class {name!r}: labels.txt cannot hold it, expected one line without spaces around it")
    labels = ("__ignore__", "_background_", *masks.classes)
    write_atomically(folder / "labels.txt", "".join(f"{name}\n" for name in labels))
    for image in track(masks.images, "export", len(masks.images)):
        write_atomically(folder / f"{image.id}.json", json_text(_described(masks, image, settings), 1) + "\n")


def _described(masks: MaskSet, image: MaskedImage, settings: ExportSettings) -> dict[str, Any]:
    shapes = [
        {"label": masks.classes[region.class_id - 1], "group_id": None, "description": "", "flags": {}, **shape}
        for region in regions(read_mask(masks, image))
        for part in (region.parts() if settings.parts or settings.polygons else (region,))
        for shape in [_polygon(part, settings.tolerance) if settings.polygons else _mask(part)]
    ]
    height, width = image.size
    return {
        "version": _VERSION, "flags": {}, "shapes": shapes, "imagePath": Path(image.name).name, "imageData": None,
        "imageHeight": height, "imageWidth": width,
    }  # fmt: skip


def _mask(region: Region) -> dict[str, Any]:
    left, top, width, height = region.box()
    file = io.BytesIO()
    Image.fromarray(region.pixels().astype(np.uint8) * 255).save(file, "PNG")
    corners = [[left, top], [left + width - 1, top + height - 1]]
    return {"shape_type": "mask", "points": corners, "mask": base64.b64encode(file.getvalue()).decode()}


def _polygon(part: Region, tolerance: float) -> dict[str, Any]:
    points = polygon(part.pixels(), tolerance, "centres") + np.array(part.box()[:2])
    points = points if len(points) > 2 else points[[0, -1, -1]]  # LabelMe requires three
    return {"shape_type": "polygon", "points": np.round(points, 2).tolist(), "mask": None}
