#!/usr/bin/env bash
# FiftyOne writes an instance mask into COCO as polygons that fill its holes, and as exact run lengths only for a crowd.
#
# Expected: a Detection that holds a mask of pixels, as its COCO importer makes it from run lengths, is written with the
#   same pixels.
# What happens: `COCOObject.from_label` traces the mask at half-pixel contours and writes the contours as polygons of
#   equal rank. The contour of a hole becomes one more filled polygon, edges move, and lines of one pixel and single
#   pixels vanish. Where the label has an attribute `iscrowd` of 1, it writes run lengths, which keep every pixel; COCO's
#   evaluation then skips the object.
# Why it matters: masks that go through FiftyOne for a split or a merge come back without holes and thin parts.
# Source: fiftyone/utils/coco.py, COCOObject.from_label and its conversion of instances to segmentations.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet fiftyone==1.22.1 pycocotools==2.0.11 numpy==2.4.6
cd "$work"
FIFTYONE_DO_NOT_TRACK=1 venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import fiftyone as fo
import numpy as np
from fiftyone.utils.coco import COCOObject
from pycocotools import mask as rle

print("fiftyone", version("fiftyone"), "pycocotools", version("pycocotools"))
about = fo.ImageMetadata(width=64, height=64, num_channels=3)
ring, line = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
ring[10:50, 10:50], ring[20:40, 20:40], line[30, 5:60] = True, False, True


def written(mask, crowd):
    label = fo.Detection.from_mask(mask, label="wall")
    if crowd:
        label["iscrowd"] = 1
    found = COCOObject.from_label(label, about, category_id=1).segmentation
    if isinstance(found, list):
        found = [one for one in found if len(one) >= 6]
        return 0 if not found else int(rle.decode(rle.merge(rle.frPyObjects(found, 64, 64))).sum())
    codes = rle.frPyObjects(found, 64, 64) if isinstance(found["counts"], list) else found
    return int(rle.decode(codes).sum())


figures = {name: (int(mask.sum()), written(mask, False), written(mask, True)) for name, mask in (("ring", ring), ("line", line))}
for name, (drawn, plain, crowd) in figures.items():
    print(f"{name}: {drawn} pixels drawn, {plain} written, {crowd} written with iscrowd")
assert figures["ring"][1] > 1500 and figures["line"][1] == 0, "behaviour changed"
assert figures["ring"][2] == 1200 and figures["line"][2] == 55, "the way out changed"
PYTHON
