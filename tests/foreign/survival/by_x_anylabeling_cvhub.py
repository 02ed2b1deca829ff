"""Masks and COCO by X-AnyLabeling's converter: read into its own files, written again. Without its window."""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"

import cv2
import numpy as np
from anylabeling.views.labeling.label_converter import LabelConverter

shapes = np.load(sys.argv[1])
Path("classes.txt").write_text("a\n")
Path("out").mkdir()
Path("again").mkdir()
converter = LabelConverter(classes_file="classes.txt")
GREY = {"type": "grayscale", "colors": {"a": 1}}


def codes(mask):
    flat = mask.T.reshape(-1).astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    return ([0] if flat[0] else []) + np.diff([0, *changes, len(flat)]).tolist()


def masks(mask):
    cv2.imwrite("a.png", np.zeros((*mask.shape, 3), np.uint8))
    cv2.imwrite("mask.png", mask.astype(np.uint8))
    converter.mask_to_custom("mask.png", "out/a.json", "a.png", GREY)
    converter.custom_to_mask("out/a.json", "back.png", GREY)
    return {"kind": "mask", "mask": cv2.imread("back.png", cv2.IMREAD_GRAYSCALE).astype(int).tolist()}


def coco(mask):
    cv2.imwrite("a.png", np.zeros((*mask.shape, 3), np.uint8))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    annotation = {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": int(mask.sum()), "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": codes(mask)},
    }  # fmt: skip
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": mask.shape[1], "height": mask.shape[0]}],
        "categories": [{"id": 1, "name": "a"}], "annotations": [annotation],
    }  # fmt: skip
    Path("given.json").write_text(json.dumps(document))
    converter.coco_to_custom("given.json", "out", "polygon")
    converter.custom_to_coco(["a.png"], "out", "again", "polygon")
    written = json.loads(Path("again/coco_instance_segmentation.json").read_text())
    return {"kind": "coco", "segmentations": [one["segmentation"] for one in written["annotations"]]}


WAYS = {"grey masks, read and written": masks, "COCO masks, read and written": coco}
ways = {way: {} for way in WAYS}
for way, do in WAYS.items():
    for name in shapes:
        try:
            ways[way][name] = do(shapes[name].astype(bool))
        except Exception as error:
            ways[way][name] = f"{type(error).__name__}: {error}"[:60]
Path(sys.argv[2]).write_text(json.dumps({"version": version("x-anylabeling-cvhub"), "ways": ways}))
