"""COCO by FiftyOne's own objects: segmentations read, and masks written. Without its database."""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["FIFTYONE_DO_NOT_TRACK"] = "1"

import fiftyone as fo
import numpy as np
from fiftyone.utils import coco

shapes = np.load(sys.argv[1])


def whole(detection, shape):
    seen = np.zeros(shape, int)
    if detection is not None and detection.mask is not None:
        x, y = round(detection.bounding_box[0] * shape[1]), round(detection.bounding_box[1] * shape[0])
        mask = np.asarray(detection.mask, int)
        seen[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
    return {"kind": "mask", "mask": seen.tolist()}


def written(mask, **attributes):
    detection = fo.Detection.from_mask(mask, label="a")
    for name, value in attributes.items():
        detection[name] = value
    about = fo.ImageMetadata(width=mask.shape[1], height=mask.shape[0], num_channels=3)
    return coco.COCOObject.from_label(detection, about, category_id=1)


def segmentation(mask, **attributes):
    return {"kind": "coco", "segmentations": [written(mask, **attributes).segmentation]}


def codes(mask):
    flat = mask.T.reshape(-1).astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    return ([0] if flat[0] else []) + np.diff([0, *changes, len(flat)]).tolist()


def read(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    given = coco.COCOObject(
        category_id=1, bbox=box, segmentation={"size": list(mask.shape), "counts": codes(mask)}, iscrowd=0
    )
    size = mask.shape[1], mask.shape[0]
    return whole(given.to_detection(size, classes_map={1: "a"}, load_segmentation=True), mask.shape)


WAYS = {
    "COCO masks, read": read,
    "COCO, written": segmentation,
    "the same with `iscrowd`": lambda mask: segmentation(mask, iscrowd=1),
}
ways = {way: {} for way in WAYS}
for way, do in WAYS.items():
    for name in shapes:
        try:
            ways[way][name] = do(shapes[name].astype(bool))
        except Exception as error:
            ways[way][name] = f"{type(error).__name__}: {error}"[:60]
Path(sys.argv[2]).write_text(json.dumps({"version": version("fiftyone"), "ways": ways}))
