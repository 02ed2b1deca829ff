#!/usr/bin/env bash
# supervision reads a COCO mask with a hole correctly, and fills the hole when it writes the data set again.
#
# Expected: a COCO file with RLE masks that is loaded with `force_masks=True` and saved unchanged keeps its pixels;
#   a new Detections object with the same mask does (supervision writes it as RLE).
# What happens: the loader stores the annotation's `iscrowd` (0) in `Detections.data`, and the writer takes it as the
#   order to write polygons, which have no holes. The hole is filled, while `area` is copied from the source file and
#   still shows the old number of pixels. The YOLO writer keeps the same hole by means of a seam.
# Why it matters: a mask that goes through supervision for a split, a merge or a change of format loses its holes
#   (the window in the wall, the handle of the cup). Load with `use_iscrowd=False` to keep them.
# Source: supervision/dataset/formats/coco.py, detections_to_coco_annotations ("Supply data={'iscrowd': ...} to force
#   polygon output regardless of mask topology").
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet supervision==0.31.2 pycocotools==2.0.11 numpy==2.4.6 opencv-python-headless==4.14.0.94
cd "$work"
venv/bin/python - <<'PYTHON'
import json
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import supervision as sv
from pycocotools import mask as rle

print("supervision", version("supervision"), "pycocotools", version("pycocotools"))
ring = np.zeros((64, 64), bool)
ring[10:50, 10:50] = True
ring[20:40, 20:40] = False
encoded = rle.encode(np.asfortranarray(ring.astype(np.uint8)))
encoded["counts"] = encoded["counts"].decode()
annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40], "area": 1200, "iscrowd": 0}
image = {"id": 1, "file_name": "a.png", "width": 64, "height": 64}
category = {"id": 1, "name": "wall", "supercategory": ""}
document = {"images": [image], "categories": [category], "annotations": [annotation | {"segmentation": encoded}]}
Path("images").mkdir()
cv2.imwrite("images/a.png", np.zeros((64, 64, 3), np.uint8))
Path("first.json").write_text(json.dumps(document))


def pixels(dataset):
    return int(next(iter(dataset))[2].mask.sum())


def load(path, **options):
    return sv.DetectionDataset.from_coco("images", path, force_masks=True, **options)


first = load("first.json")
first.as_coco(annotations_path="second.json")
load("first.json", use_iscrowd=False).as_coco(annotations_path="third.json")
first.as_yolo(annotations_directory_path="labels", data_yaml_path="data.yaml")
yolo = sv.DetectionDataset.from_yolo("images", "labels", "data.yaml", force_masks=True)
stated = json.loads(Path("second.json").read_text())["annotations"][0]["area"]
again, without_flag = load("second.json"), load("third.json")
print("pixels: loaded", pixels(first), "| after as_coco", pixels(again), "with area", stated)
print("        after as_yolo", pixels(yolo), "| after as_coco, loaded with use_iscrowd=False", pixels(without_flag))
assert pixels(first) == pixels(yolo) == pixels(without_flag) == 1200, "the source, YOLO or the way out changed"
assert pixels(again) == 1600 and stated == 1200, "behaviour changed"
PYTHON
