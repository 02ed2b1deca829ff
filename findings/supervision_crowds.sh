#!/usr/bin/env bash
# supervision marks every mask that has a hole or two parts as a COCO crowd, and COCO's evaluation skips crowds.
#
# Expected: `iscrowd` is a statement about the labels ("a group that nobody separated"). A single object in
#   two parts, or with a hole, is written with `iscrowd` 0, as RLE or with several polygons.
# What happens: supervision uses `iscrowd` as the switch between RLE and polygons, so each such mask becomes a crowd.
#   pycocotools' COCOeval treats crowds as regions to ignore: a detector that misses them loses nothing.
# Why it matters: the occluded and the ring-shaped objects, often the hard ones, vanish silently from the
#   ground truth. Here one of two objects is found, and the average recall is 100 % in place of 50 %. Many training
#   loaders drop crowds, too.
# Source: supervision/dataset/formats/coco.py, detections_to_coco_annotations; COCO's data format: "iscrowd=1 ... to
#   label large groups of objects".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet supervision==0.31.2 pycocotools==2.0.11 numpy==2.4.6 opencv-python-headless==4.14.0.94
cd "$work"
venv/bin/python - <<'PYTHON'
import contextlib
import io
import json
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import supervision as sv
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

print("supervision", version("supervision"), "pycocotools", version("pycocotools"))
solid, parts = np.zeros((2, 64, 64), bool)
solid[5:25, 5:25] = True
parts[40:60, 5:25] = parts[40:60, 40:60] = True  # one object behind a pole
masks = np.stack([solid, parts])
objects = sv.Detections(xyxy=sv.mask_to_xyxy(masks).astype(float), mask=masks, class_id=np.array([0, 0]))
Path("images").mkdir()
cv2.imwrite("images/a.png", np.zeros((64, 64, 3), np.uint8))
dataset = sv.DetectionDataset(classes=["cow"], images=["images/a.png"], annotations={"images/a.png": objects})
dataset.as_coco(annotations_path="truth.json")


def recall(truth):
    found = rle.encode(np.asfortranarray(solid.astype(np.uint8)))
    predicted = truth.loadRes([{"image_id": 1, "category_id": 1, "segmentation": found, "score": 0.9}])
    evaluation = COCOeval(truth, predicted, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    return float(evaluation.eval["recall"][0, 0, 0, -1])  # IoU 0.5, all areas, 100 detections


as_written = json.loads(Path("truth.json").read_text())
crowds = [annotation["iscrowd"] for annotation in as_written["annotations"]]
with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
    measured = recall(COCO("truth.json"))
for annotation in as_written["annotations"]:
    annotation["iscrowd"] = 0
Path("corrected.json").write_text(json.dumps(as_written))
with contextlib.redirect_stdout(io.StringIO()):
    right = recall(COCO("corrected.json"))
print("iscrowd of the solid object and of the one in two parts:", crowds)
print("recall with one of two objects found:", measured, "| with iscrowd set to 0:", right)
assert right == 0.5, "COCOeval changed"
assert crowds == [0, 1] and measured == 1.0, "behaviour changed"
PYTHON
