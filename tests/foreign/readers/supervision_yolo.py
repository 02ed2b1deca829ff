import sys
from pathlib import Path

import numpy as np
import supervision
from written import write

export, out = map(Path, sys.argv[1:])
masks = {}
# It reads one folder of images at a time.
for folder in sorted({path.parent for path in (export / "images").rglob("*.png")}):
    data = supervision.DetectionDataset.from_yolo(
        str(folder),
        str(export / "labels" / folder.relative_to(export / "images")),
        str(export / "data.yaml"),
        force_masks=True,
    )
    for path, picture, found in data:
        name = Path(path).relative_to(export / "images/train").as_posix()
        masks[name] = mask = np.zeros(picture.shape[:2], np.uint8)
        for pixels, number in zip(found.mask if len(found) else (), found.class_id, strict=True):
            mask[pixels] = number + 1
write(out, "supervision", data.classes, masks)
