import sys
from pathlib import Path

import datumaro
import numpy as np
from written import write

export, out = map(Path, sys.argv[1:])
kinds = {"ImageSets": "voc_segmentation", "annotations": "coco_instances"}
kind = next((kind for name, kind in kinds.items() if (export / name).is_dir()), "")
if (export / "annotations").is_dir() and "dm_format_version" in next((export / "annotations").iterdir()).read_text():
    kind = "datumaro"
data = datumaro.Dataset.import_from(str(export), kind)
labels = [label.name for label in data.categories()[datumaro.AnnotationType.label]]
names = [name for name in labels if name != "background"]
masks = {}
for item in data:
    masks[item.id] = mask = np.zeros(item.media.size, np.uint8)
    for annotation in item.annotations:
        # Datumaro also makes a box of every COCO instance.
        if annotation.type == datumaro.AnnotationType.mask and labels[annotation.label] in names:
            mask[np.asarray(annotation.image).astype(bool)] = 1 + names.index(labels[annotation.label])
write(out, "datumaro", names, masks)
