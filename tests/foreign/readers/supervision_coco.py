import sys
from pathlib import Path

import numpy as np
import supervision
from written import write

export, out = map(Path, sys.argv[1:])
data = supervision.DetectionDataset.from_coco(
    str(export / "images"), str(next((export / "annotations").glob("*.json"))), force_masks=True
)
masks = {}
for path, picture, found in data:
    masks[Path(path).relative_to(export / "images").as_posix()] = mask = np.zeros(picture.shape[:2], np.uint8)
    for pixels, number in zip(found.mask if len(found) else (), found.class_id, strict=True):
        mask[pixels] = number + 1
write(out, "supervision", data.classes, masks)
