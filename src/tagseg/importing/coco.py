"""COCO instances from CVAT, Label Studio, Roboflow and others."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tagseg.data.coco import read_instances
from tagseg.data.images import require_size
from tagseg.data.mask_values import known_names
from tagseg.data.records import VOID, CocoMask, Dataset, Sample
from tagseg.data.segmentations import draw as draw_segments
from tagseg.errors import DataError
from tagseg.export.coco import DESCRIPTION
from tagseg.importing.match import Corrected
from tagseg.system.records import read_json

log = logging.getLogger(__name__)


def read_coco_masks(file: Path, dataset: Dataset) -> list[Corrected]:
    """Return the masks of all images of a COCO file.

    CVAT marks everything that is drawn with the brush as a crowd, so crowds are objects of their class, except in files
    that tagseg wrote: there they are void pixels.

    Raises:
        DataError: when the file is not COCO's, or has categories that are not classes of the data set.
    """
    instances, ids = read_instances(file), known_names(dataset.classes)
    used = {entry["category_id"] for entries in instances.annotations.values() for entry in entries}
    unknown = sorted(instances.categories[category] for category in used if instances.categories[category] not in ids)
    if unknown:
        raise DataError(f"{file}: unknown categories {', '.join(unknown)}, expected only {', '.join(dataset.classes)}")
    crowds = sum(bool(entry.get("iscrowd")) for entries in instances.annotations.values() for entry in entries)
    info = read_json(file).get("info") if crowds else None
    crowds_are_void = isinstance(info, dict) and info.get("description") == DESCRIPTION
    if crowds and not crowds_are_void:
        log.info("%s: %d annotations are marked as crowds and read as objects of their class", file, crowds)

    def corrected(record: Mapping[str, Any], entries: tuple[Mapping[str, Any], ...]) -> Corrected:
        def draw(sample: Sample, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
            for entry in entries:
                if not entry.get("segmentation"):
                    raise DataError(
                        f"{file}: an annotation of {record['file_name']} is only a box, expected a segmentation"
                    )
            require_size(sample.image, (record["height"], record["width"]), size)
            segments = []
            for entry in entries:
                class_id = ids[instances.categories[entry["category_id"]]]
                void = class_id == VOID or (crowds_are_void and bool(entry.get("iscrowd")))
                segments.append((class_id, entry["segmentation"], void))
            return draw_segments(CocoMask(record["height"], record["width"], tuple(segments)), sample.image)

        return Corrected((record["file_name"],), draw, empty=not entries)

    annotations = instances.annotations
    return [corrected(record, tuple(annotations.get(number, ()))) for number, record in instances.images.items()]
