"""Datumaro's own format, with exact run-length codes; Datumaro converts it to dozens of others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tagseg.data.records import VOID
from tagseg.export.folder import write_json_list
from tagseg.export.masks import MaskedImage, MaskSet, read_mask
from tagseg.export.regions import regions
from tagseg.export.voc import void_name
from tagseg.settings.export import ExportSettings
from tagseg.system.files import atomic_path
from tagseg.system.progress import Track
from tagseg.system.records import json_text


def write_datumaro(masks: MaskSet, folder: Path, settings: ExportSettings, track: Track) -> None:
    """Write `annotations/SUBSET.json`; unsure pixels, if kept, have a label of their own, void.

    Raises:
        DataError: when a mask cannot be read.
    """
    names = [*masks.classes, *([void_name(masks.classes)] if masks.unsure == "void" else [])]
    labels = [{"name": name, "parent": "", "attributes": []} for name in names]
    categories = {"label": {"labels": labels, "label_groups": [], "attributes": []}}
    path = folder / "annotations" / f"{masks.subset}.json"
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"dm_format_version": "1.0", "media_type": 2, "infos": {}, "categories": ')
        file.write(json_text(categories) + ',\n"items": ')
        write_json_list(file, _items(masks, settings, track))
        file.write("}\n")


def datumaro_image(masks: MaskSet, image: MaskedImage) -> Path:
    """Return an image's path, relative to the export."""
    return Path("images", masks.subset, image.name)


def _items(masks: MaskSet, settings: ExportSettings, track: Track) -> Iterator[dict[str, Any]]:
    for image in track(masks.images, "export", len(masks.images)):
        parts = [
            part
            for region in regions(read_mask(masks, image))
            for part in (region.parts() if settings.parts else (region,))
        ]
        annotations = [
            {
                "id": number, "type": "mask", "attributes": {}, "group": number, "z_order": 0,
                "label_id": len(masks.classes) if part.class_id == VOID else part.class_id - 1, "rle": part.code(),
            }
            for number, part in enumerate(parts, 1)
        ]  # fmt: skip
        media = {"path": image.name, "size": list(image.size)}
        yield {"id": image.id, "annotations": annotations, "image": media}
