#!/usr/bin/env bash
# X-AnyLabeling's COCO import takes a point of a polygon away that occurs twice, so an outline that touches itself
# becomes another shape.
#
# Expected: a COCO mask that the importer accepts (it compares mask and polygons, and refuses what it would change) has
#   the same pixels in the imported file.
# What happens: the comparison comes first, with all points. Afterwards every point of a polygon that occurred before is
#   dropped, wherever it is in the outline. Two squares that touch at a corner have one outline that passes the corner
#   twice; without the second pass the next edge starts elsewhere, and a triangle is cut off or added.
# Why it matters: an object in two parts that touch diagonally (legs, leaves) silently changes its shape on import.
# Source: anylabeling/views/labeling/label_converter.py, coco_to_custom (`seen_points`).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet x-anylabeling-cvhub==4.2.1 pycocotools==2.0.11 numpy==2.4.6
cd "$work"
QT_QPA_PLATFORM=offscreen venv/bin/python - 2>/dev/null <<'PYTHON'
import json
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from anylabeling.views.labeling.label_converter import LabelConverter

print("x-anylabeling-cvhub", version("x-anylabeling-cvhub"))
mask = np.zeros((64, 64), np.uint8)
mask[8:24, 8:24] = mask[24:40, 24:40] = 1
flat = mask.T.reshape(-1).astype(int)
runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), len(flat)]).tolist()
annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 32, 32], "area": 512, "iscrowd": 0}
document = {
    "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
    "categories": [{"id": 1, "name": "leaf"}],
    "annotations": [annotation | {"segmentation": {"size": [64, 64], "counts": runs}}],
}
Path("given.json").write_text(json.dumps(document))
Path("classes.txt").write_text("leaf\n")
Path("out").mkdir()
LabelConverter(classes_file="classes.txt").coco_to_custom("given.json", "out", "polygon")
shapes = json.loads(Path("out/a.json").read_text())["shapes"]
drawn = np.zeros_like(mask)
for shape in shapes:
    cv2.fillPoly(drawn, [np.array(shape["points"], np.int32)], 1)
(outline,) = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
exact = np.zeros_like(mask)
cv2.fillPoly(exact, [outline], 1)
print(f"pixels wrong: outline with all its points {int((exact != mask).sum())}, imported {int((drawn != mask).sum())}")
print(f"points: outline {len(outline)}, imported {[len(shape['points']) for shape in shapes]}")
assert (exact == mask).all(), "the outline itself changed"
assert (drawn != mask).sum() > 100, "behaviour changed"
PYTHON
