"""CVAT's import formats "Segmentation mask 1.1" and COCO, each as the archive that CVAT accepts."""

import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tagseg.data.records import VOID
from tagseg.errors import DataError
from tagseg.export.coco import write_coco_file
from tagseg.export.masks import MaskSet, read_mask
from tagseg.export.regions import regions
from tagseg.export.voc import image_list, label_map
from tagseg.masks.mask_files import mask_png
from tagseg.masks.palette import class_colours
from tagseg.settings.export import ExportSettings
from tagseg.system.files import atomic_path, write_atomically
from tagseg.system.progress import Track
from tagseg.system.records import json_text

_MOST_OBJECTS = 254
"""How many objects SegmentationObject can tell apart: the 256 colours of a palette without background and void."""


def write_cvat(masks: MaskSet, folder: Path, settings: ExportSettings, track: Track) -> None:
    """Write segmentation_mask_1.1.zip, coco_1.0.zip and labels.json.

    CVAT imports either archive into a task that has these images. Paste labels.json into the "Raw" tab of the task's
    label editor.

    Raises:
        DataError: when a mask cannot be read, or CVAT's lists cannot hold the name of a class or an image.
    """
    try:
        names, labels = image_list(masks), label_map(masks.classes)
    except DataError as error:
        raise DataError(f"{error}; CVAT can also import --to coco") from error
    colours = class_colours(VOID)
    label_definitions = [
        {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*colours[i]), "type": "mask", "attributes": []}
        for i, name in enumerate(masks.classes, 1)
    ]
    write_atomically(folder / "labels.json", json_text(label_definitions, 1) + "\n")
    with atomic_path(folder / "segmentation_mask_1.1.zip") as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _store(archive, "labelmap.txt", labels.encode())
        _store(archive, "ImageSets/Segmentation/default.txt", names.encode())
        for image in track(masks.images, "export masks", len(masks.images)):
            mask = read_mask(masks, image)
            _store(archive, f"SegmentationClass/{image.id}.png", mask_png(mask))
            _store(archive, f"SegmentationObject/{image.id}.png", mask_png(number_objects(mask, settings.parts)))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as below:
        file = Path(below) / "instances_default.json"
        write_coco_file(file, masks, settings, track)
        with (
            atomic_path(folder / "coco_1.0.zip") as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
            file.open("rb") as content,
            archive.open(_entry("annotations/instances_default.json"), "w") as entry,
        ):
            shutil.copyfileobj(content, entry)


def number_objects(mask: UInt8[np.ndarray, "h w"], parts: bool) -> UInt8[np.ndarray, "h w"]:
    """Return a mask whose values number the objects from 1; all objects after the 254th share the number 254.

    An object is a class, or with `parts` a connected part of one.
    """
    numbered = np.zeros_like(mask)
    count = 0
    for region in regions(mask):
        for part in region.parts() if parts else (region,):
            count = min(count + 1, _MOST_OBJECTS)
            left, top, width, height = part.box()
            numbered[top : top + height, left : left + width][part.pixels()] = count
    return numbered


def _store(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(_entry(name), content)


def _entry(name: str) -> zipfile.ZipInfo:
    # Without a timestamp, so that the same masks give the same archive.
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry
