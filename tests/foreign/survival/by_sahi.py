"""A mask as sahi's annotation, and its COCO segmentation."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sahi.annotation import Mask

shapes = np.load(sys.argv[1])
ways = {"`Mask.from_bool_mask`, COCO": {}, "the same, read back": {}}
for name in shapes:
    mask = shapes[name].astype(bool)
    try:
        made = Mask.from_bool_mask(mask, full_shape=list(mask.shape))
        ways["`Mask.from_bool_mask`, COCO"][name] = {"kind": "coco", "segmentations": [made.segmentation]}
        ways["the same, read back"][name] = {"kind": "mask", "mask": np.asarray(made.bool_mask).astype(int).tolist()}
    except Exception as error:
        for way in ways:
            ways[way].setdefault(name, f"{type(error).__name__}: {error}"[:80])
Path(sys.argv[2]).write_text(json.dumps({"version": version("sahi"), "ways": ways}))
