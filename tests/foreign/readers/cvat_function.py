"""CVAT's own types accept what the function returns, and CVAT's decoder sees the mask."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import cvat_sdk.auto_annotation as cvat
import numpy as np
from cvat_sdk.masks import decode_mask

export, out = map(Path, sys.argv[1:])
given = json.loads((export / "shapes.json").read_text())
spec = cvat.DetectionFunctionSpec(
    labels=[cvat.label_spec(name, i, type="any") for i, name in enumerate(given["classes"], 1)]
)
mask = np.zeros(given["size"], np.uint8)
for label_id, points in given["masks"]:
    shape = cvat.mask(label_id, points)
    assert shape.label_id in {label.id for label in spec.labels}
    mask[decode_mask(shape.points, image_width=mask.shape[1], image_height=mask.shape[0])] = label_id
for label_id, points in given["polygons"]:
    assert len(cvat.polygon(label_id, points).points) >= 6
Path(out, "found.json").write_text(json.dumps({"version": version("cvat-sdk"), "classes": given["classes"]}))
np.savez(Path(out, "masks.npz"), a=mask)
