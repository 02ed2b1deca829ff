import sys
from pathlib import Path

import numpy as np
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset, polygons2masks
from written import write

export, out = map(Path, sys.argv[1:])
data = check_det_dataset(str(export / "data.yaml"))
options = get_cfg(overrides={"task": "segment", "imgsz": 64, "cache": False})
found = build_yolo_dataset(options, data["train"], 2, data, mode="val")
masks = {}
for label in found.labels:
    height, width = label["shape"]
    mask = np.zeros((height, width), np.uint8)
    for number, points in zip(label["cls"].ravel().astype(int), label["segments"], strict=True):
        scaled = (points * (width, height)).reshape(1, -1)
        mask[polygons2masks((height, width), scaled, 1)[0] > 0] = number + 1
    masks[Path(label["im_file"]).relative_to(export / "images/train").as_posix()] = mask
write(out, "ultralytics", [data["names"][key] for key in sorted(data["names"])], masks)
