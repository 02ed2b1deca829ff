import sys
from pathlib import Path

from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from written import write

export, out = map(Path, sys.argv[1:])
data = check_det_dataset(str(export / "data.yaml"))
options = get_cfg(overrides={"task": "semantic", "imgsz": 64, "cache": False})
found = build_yolo_dataset(options, data["train"], 2, data, mode="val")
masks = {
    Path(label["im_file"]).relative_to(export / "images/train").as_posix(): found.load_mask(index)
    for index, label in enumerate(found.labels)
}
write(out, "ultralytics", [data["names"][key] for key in sorted(data["names"])][1:], masks)
