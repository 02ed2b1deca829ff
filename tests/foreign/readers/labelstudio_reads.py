import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from written import write

export, out = map(Path, sys.argv[1:])
names = [label.get("value") for label in ElementTree.parse(export / "interface.xml").iter("Label")]
masks = {}
for task in json.loads((export / "tasks.json").read_text("utf-8")):
    regions = task["predictions"][0]["result"]
    for region in regions:
        size = region["original_height"], region["original_width"]
        mask = masks.setdefault(task["data"]["name"], np.zeros(size, np.uint8))
        alpha = np.reshape(decode_rle(region["value"]["rle"]), (*size, 4))[..., 3]
        mask[alpha > 0] = 1 + names.index(region["value"]["brushlabels"][0])
write(out, "label-studio", names, masks)
