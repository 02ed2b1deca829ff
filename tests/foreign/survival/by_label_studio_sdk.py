"""Label Studio's run-length codes of brush strokes (JSON), and its COCO export of them."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from label_studio_sdk.converter.brush import decode_rle, encode_rle
from label_studio_sdk.converter.exports.brush_to_coco import generate_contour_from_rle

shapes = np.load(sys.argv[1])
ways = {"JSON (brush)": {}, "Brush labels to COCO": {}}
for name in shapes:
    mask = shapes[name].astype(np.uint8)
    codes = encode_rle(np.repeat(mask[..., None] * 255, 4, axis=2).ravel())
    back = np.reshape(decode_rle(codes), (*mask.shape, 4))[..., 3] > 0
    ways["JSON (brush)"][name] = {"kind": "mask", "mask": back.astype(int).tolist()}
    polygons, _, _ = generate_contour_from_rle(codes, mask.shape[1], mask.shape[0])
    ways["Brush labels to COCO"][name] = {"kind": "coco", "segmentations": [polygons] if polygons else []}
Path(sys.argv[2]).write_text(json.dumps({"version": version("label-studio-sdk"), "ways": ways}, default=float))
