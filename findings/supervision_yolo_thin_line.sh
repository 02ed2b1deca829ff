#!/usr/bin/env bash
# supervision writes a diagonal line of one pixel's width to YOLO as a box, and reads it back as a full rectangle.
#
# Expected: a mask that is too thin for a polygon is left out with a warning, as supervision's COCO writer does,
#   or is written as a degenerate polygon.
# What happens: the outline has two vertices, so no polygon is left, and the writer falls back to the bounding box. A
#   YOLO line with four numbers is a box, which the reader (`force_masks=True`) turns into a mask of the whole
#   rectangle: a line of 64 pixels comes back as an object of 4,096.
# Why it matters: wires, masts, cracks and lane markings. One thin mask in a segmentation data set labels the whole
#   image as the class, without a warning. A horizontal or vertical line survives, since it fills its box.
# Source: supervision/dataset/formats/yolo.py, detections_to_yolo_annotations and object_to_yolo.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet supervision==0.31.2 numpy==2.4.6 opencv-python-headless==4.14.0.94
cd "$work"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import supervision as sv

print("supervision", version("supervision"))
Path("images").mkdir()
cv2.imwrite("images/a.png", np.zeros((64, 64, 3), np.uint8))


def through_yolo(mask):
    detections = sv.Detections(
        xyxy=sv.mask_to_xyxy(mask[None]).astype(float), mask=mask[None], class_id=np.array([0])
    )
    dataset = sv.DetectionDataset(classes=["wire"], images=["images/a.png"], annotations={"images/a.png": detections})
    dataset.as_yolo(annotations_directory_path="labels", data_yaml_path="data.yaml")
    print("  label file:", Path("labels/a.txt").read_text().strip())
    back = sv.DetectionDataset.from_yolo("images", "labels", "data.yaml", force_masks=True)
    return int(next(iter(back))[2].mask.any(0).sum())


diagonal = np.eye(64, dtype=bool)
row = np.zeros((64, 64), bool)
row[20, 10:50] = True
thin, straight = through_yolo(diagonal), through_yolo(row)
print("diagonal line:", int(diagonal.sum()), "pixels, read back as", thin)
print("row:", int(row.sum()), "pixels, read back as", straight)
assert straight == 40, "the row changed"
assert thin == 64 * 64, "behaviour changed"
PYTHON
