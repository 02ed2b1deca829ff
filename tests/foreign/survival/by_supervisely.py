"""A mask as Supervisely's bitmap, and as its polygons."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import supervisely as sly

shapes = np.load(sys.argv[1])
ways = {"bitmap, JSON": {}, "bitmap to polygons": {}}
for name in shapes:
    mask = shapes[name].astype(bool)
    for way in ways:
        try:
            bitmap = sly.Bitmap(mask)
            if way == "bitmap, JSON":
                kept = [sly.Bitmap.from_json(json.loads(json.dumps(bitmap.to_json())))]
            else:
                kept = bitmap.convert(sly.Polygon)
            seen = np.zeros(mask.shape, np.uint8)
            for one in kept:
                one.draw(seen, 1)
            ways[way][name] = {"kind": "mask", "mask": seen.astype(int).tolist()}
        except Exception as error:
            ways[way][name] = f"{type(error).__name__}: {error}".splitlines()[0][:60]
Path(sys.argv[2]).write_text(json.dumps({"version": version("supervisely"), "ways": ways}))
