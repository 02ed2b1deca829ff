"""COCO's instance JSON, with exact run-length codes or polygons."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tagseg.data.records import VOID
from tagseg.export.folder import write_json_list
from tagseg.export.masks import MaskedImage, MaskSet, read_mask
from tagseg.export.outlines import polygon
from tagseg.export.regions import Region, regions
from tagseg.settings.export import ExportSettings
from tagseg.system.files import atomic_path
from tagseg.system.progress import Track
from tagseg.system.records import json_text

DESCRIPTION = "masks by tagseg"
"""Description in the files that this module writes: only in these are crowds void pixels when they are imported."""


def write_coco(masks: MaskSet, folder: Path, settings: ExportSettings, track: Track) -> None:
    """Write `annotations/instances_SUBSET.json`, with class ids as category ids.

    Each class of an image is one annotation, as in COCO's stuff files; with `settings.parts`, each connected part is.
    Unsure pixels, if kept, become crowd annotations of the image's tags: COCO's evaluation ignores crowds.

    Raises:
        DataError: when a mask cannot be read.
    """
    subset = masks.subset
    write_coco_file(folder / "annotations" / f"instances_{subset}.json", masks, settings, track)


def write_coco_file(path: Path, masks: MaskSet, settings: ExportSettings, track: Track) -> None:
    """Write COCO's instance JSON to `path`, one image at a time.

    Raises:
        DataError: when a mask cannot be read.
    """
    images = (
        {"id": number, "file_name": image.name, "width": image.size[1], "height": image.size[0]}
        for number, image in enumerate(masks.images, 1)
    )
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(masks.classes, 1)]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {{"description": "{DESCRIPTION}"}}, "licenses": [],\n"categories": ')
        file.write(json_text(categories) + ',\n"images": ')
        write_json_list(file, images)
        file.write(',\n"annotations": ')
        write_json_list(file, _annotations(masks, settings, track))
        file.write("}\n")


def _annotations(masks: MaskSet, settings: ExportSettings, track: Track) -> Iterator[dict[str, Any]]:
    count = 0
    for number, image in enumerate(track(masks.images, "export", len(masks.images)), 1):
        for annotation in _image_annotations(masks, image, settings):
            count += 1
            yield {"id": count, "image_id": number, **annotation}


def _image_annotations(masks: MaskSet, image: MaskedImage, settings: ExportSettings) -> Iterator[dict[str, Any]]:
    found = list(regions(read_mask(masks, image)))
    present = tuple(region.class_id for region in found if region.class_id != VOID)
    for region in found:
        if region.class_id == VOID:
            for class_id in image.tags or present or (1,):
                yield {"category_id": class_id, "iscrowd": 1, **_area_and_box(region), "segmentation": region.code()}
            continue
        for part in region.parts() if settings.parts else (region,):
            segmentation = _polygons(part, settings.tolerance) if settings.polygons else part.code()
            yield {"category_id": region.class_id, "iscrowd": 0, **_area_and_box(part), "segmentation": segmentation}


def _area_and_box(region: Region) -> dict[str, Any]:
    return {"area": region.area(), "bbox": list(region.box())}


def _polygons(region: Region, tolerance: float) -> list[list[float]]:
    polygons = []
    for part in region.parts():
        left, top = part.box()[:2]
        points = polygon(part.pixels(), tolerance) + np.array([left, top])
        polygons.append([round(number, 2) for number in points.ravel().tolist()])
    return polygons
