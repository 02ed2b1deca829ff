"""Label Studio's import format: tasks with brush regions as predictions, and the labelling interface to show them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from jaxtyping import UInt8

from tagseg.data.records import VOID
from tagseg.errors import DataError
from tagseg.export.brush import encode_brush
from tagseg.export.folder import write_json_list
from tagseg.export.masks import MaskedImage, MaskSet, read_mask
from tagseg.export.regions import regions
from tagseg.masks.palette import class_colours
from tagseg.settings.export import ExportSettings
from tagseg.system.files import atomic_path, write_atomically
from tagseg.system.progress import Track

_CONTROL, _IMAGE = "masks", "image"
"""Names that tie the regions of a task to the tags of the interface."""

_XML_TEXT = re.compile("[\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")


def write_labelstudio(masks: MaskSet, folder: Path, settings: ExportSettings, track: Track) -> None:
    """Write tasks.json, with the masks as predictions to correct, and interface.xml, the project's labelling interface.

    Raises:
        DataError: when a mask cannot be read, or XML cannot hold a class name.
    """
    write_atomically(folder / "interface.xml", interface(masks.classes))
    with atomic_path(folder / "tasks.json") as temporary, temporary.open("w", encoding="utf-8") as file:
        shown = track(masks.images, "export", len(masks.images))
        write_json_list(file, (task(masks, image, settings) for image in shown))


def task(masks: MaskSet, image: MaskedImage, settings: ExportSettings) -> dict[str, Any]:
    """Return an image's task; its address is `settings.address` followed by the percent-encoded path."""
    result = mask_regions(read_mask(masks, image), masks.classes, settings.parts)
    data = {"image": settings.address + quote(image.name), "name": image.name}
    return {"data": data, "predictions": [{"model_version": "tagseg", "result": result}]}


def mask_regions(mask: UInt8[np.ndarray, "h w"], classes: Sequence[str], parts: bool) -> list[dict[str, Any]]:
    """Return a mask as Label Studio's brush regions: one per class (id i is `classes[i - 1]`) or connected part."""
    return [
        {
            "id": f"{region.class_id}-{number}",
            "type": "brushlabels",
            "from_name": _CONTROL,
            "to_name": _IMAGE,
            "original_height": mask.shape[0],
            "original_width": mask.shape[1],
            "image_rotation": 0,
            "value": {"format": "rle", "rle": encode_brush(part.mask()), "brushlabels": [classes[region.class_id - 1]]},
        }
        for region in regions(mask)
        for number, part in enumerate(region.parts() if parts else (region,))
    ]


def interface(classes: tuple[str, ...]) -> str:
    """Return the labelling interface: one brush per class, in the colours of the masks.

    Raises:
        DataError: when XML or Label Studio cannot hold the name of a class.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=_IMAGE, value="$image", zoom="true")
    labels = ElementTree.SubElement(view, "BrushLabels", name=_CONTROL, toName=_IMAGE)
    for name, colour in zip(classes, class_colours(VOID)[1:], strict=False):
        # Label Studio takes a name that starts with $ for a field of the task.
        if name.startswith("$") or not _XML_TEXT.fullmatch(name):
            raise DataError(
                f"class {name!r}: Label Studio cannot hold this name, expected no $ at the start and no control "
                "characters"
            )
        ElementTree.SubElement(labels, "Label", value=name, background="#{:02x}{:02x}{:02x}".format(*colour))
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"
