#!/usr/bin/env bash
# Label Studio's export "Brush labels to COCO" does not hold the brush strokes: masks come back with other pixels.
#
# Expected: COCO has run-length codes, and brush regions are stored as run-length codes, so the pixels stay the same.
# What happens: every region becomes polygons through its outermost pixels. Read with pycocotools, a hole is filled and the
#   right and lower edges are lost; a line of one pixel disappears from the file, with no warning.
# Why it matters: it is the one export of brush labels whose name promises masks for training with COCO tools; the export
#   "JSON" of the same project is exact.
# Source: label_studio_sdk/converter/exports/brush_to_coco.py.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet label-studio-sdk==2.1.2 numpy==2.2.6 pycocotools==2.0.11
cd "$work"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import numpy as np
from label_studio_sdk.converter.brush import decode_rle, encode_rle
from label_studio_sdk.converter.exports.brush_to_coco import generate_contour_from_rle
from pycocotools import mask as coco

print("label-studio-sdk", version("label-studio-sdk"))


def after_export(mask):
    """Return a mask after the export and pycocotools; None if the file has no segmentation for it."""
    alpha = np.repeat(mask.astype(np.uint8)[..., None] * 255, 4, axis=2)
    rle = encode_rle(alpha.ravel())
    assert (np.reshape(decode_rle(rle), alpha.shape)[..., 3] > 0).tolist() == mask.tolist(), "the code itself is exact"
    polygons, _, _ = generate_contour_from_rle(rle, mask.shape[1], mask.shape[0])
    if not polygons:
        return None
    return coco.decode(coco.merge(coco.frPyObjects(polygons, *mask.shape))).astype(bool)


square, ring, line = np.zeros((3, 40, 50), bool)
square[10:30, 10:40] = True
ring[5:35, 5:45] = True
ring[12:28, 12:38] = False
line[20, 5:45] = True
back = after_export(square)
print("square of", square.sum(), "pixels:", (back != square).sum(), "differ")
filled = after_export(ring)
print("hole of", 16 * 26, "pixels:", filled[12:28, 12:38].sum(), "of them are filled")
print("line of", line.sum(), "pixels:", after_export(line))
assert back.sum() == 19 * 29, "behaviour changed: the edges"
assert filled[12:28, 12:38].all(), "behaviour changed: the hole"
assert after_export(line) is None, "behaviour changed: the line"
PYTHON
