"""COCO masks read by V7's darwin-py: as polygons, which is the default, and as masks."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from darwin.importer.formats.coco import parse_json
from darwin.utils import convert_polygons_to_mask

shapes = np.load(sys.argv[1])
ways = {"COCO masks as polygons (default)": {}, "COCO masks, `rle_as_masks`": {}}


def given(mask):
    flat = mask.T.reshape(-1).astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = ([0] if flat[0] else []) + np.diff([0, *changes, len(flat)]).tolist()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    annotation = {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": int(mask.sum()), "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": runs},
    }  # fmt: skip
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": mask.shape[1], "height": mask.shape[0]}],
        "categories": [{"id": 1, "name": "a"}], "annotations": [annotation],
    }  # fmt: skip


for way, options in zip(ways, ({}, {"rle_as_masks": True}), strict=True):
    for name in shapes:
        mask = shapes[name].astype(bool)
        try:
            seen = np.zeros(mask.shape, bool)
            for annotation in next(iter(parse_json(Path("a.json"), given(mask), **options))).annotations:
                kind = annotation.annotation_class.annotation_type
                if kind == "polygon":
                    seen |= convert_polygons_to_mask(annotation.data["paths"], *mask.shape).astype(bool)
                elif kind == "raster_layer":
                    values, runs = np.reshape(annotation.data["dense_rle"], (-1, 2)).T
                    seen |= np.repeat(values, runs).reshape(mask.shape) > 0
            ways[way][name] = {"kind": "mask", "mask": seen.astype(int).tolist()}
        except Exception as error:
            ways[way][name] = f"{type(error).__name__}: {error}".splitlines()[0][:60]
Path(sys.argv[2]).write_text(json.dumps({"version": version("darwin-py"), "ways": ways}))
