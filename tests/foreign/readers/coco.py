import sys
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from written import write

export, out = map(Path, sys.argv[1:])
coco = COCO(str(next((export / "annotations").glob("*.json"))))
names = [coco.cats[key]["name"] for key in sorted(coco.cats)]
masks = {}
for image in coco.imgs.values():
    masks[image["file_name"]] = mask = np.zeros((image["height"], image["width"]), np.uint8)
    for entry in coco.loadAnns(coco.getAnnIds(image["id"])):
        mask[coco.annToMask(entry) > 0] = 1 + names.index(coco.cats[entry["category_id"]]["name"])
write(out, "pycocotools", names, masks)
