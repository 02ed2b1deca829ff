#!/usr/bin/env bash
# Datumaro's KITTI writer gives the background to the first class when the labels contain no background class.
#
# Expected: pixels without a label are written as background or void, or a background class is added, as the same
#   package does for VOC, CamVid and Cityscapes.
# What happens: KITTI's semantic masks start at label 0, which is the first class, and unlabelled pixels are 0 as well.
#   Read back by Datumaro itself, the first class has two masks: its own pixels and the whole background.
# Why it matters: COCO and YOLO data sets have no background class, and COCO to KITTI is a usual conversion. The class
#   that happens to be first covers most of every image, with no warning that names it.
# Source: datumaro/plugins/data_formats/kitti (the mask is compiled over a background of 0).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet datumaro==1.13.12 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import datumaro as dm
import numpy as np

print("datumaro", version("datumaro"))
cat, dog = np.zeros((2, 8, 10), bool)
cat[2:5, 2:5] = True
dog[6:] = True
item = dm.DatasetItem(
    id="a",
    subset="train",
    media=dm.Image.from_numpy(np.zeros((8, 10, 3), np.uint8)),
    annotations=[dm.Mask(cat, label=0, id=1, group=1), dm.Mask(dog, label=1, id=2, group=2)],
)
dataset = dm.Dataset.from_iterable([item], categories=["cat", "dog"])


def pixels_after(name):
    dataset.export(name, name, save_media=True)
    back = dm.Dataset.import_from(name, name)
    names = [label.name for label in back.categories()[dm.AnnotationType.label]]
    found = dict.fromkeys(["cat", "dog"], 0)
    for one in back:
        for annotation in one.annotations:
            if annotation.type == dm.AnnotationType.mask:
                found[names[annotation.label]] += int(annotation.image.sum())
    return found


drawn = {"cat": int(cat.sum()), "dog": int(dog.sum())}
others = {name: pixels_after(name) for name in ("voc_segmentation", "camvid", "cityscapes")}
kitti = pixels_after("kitti_segmentation")
print("drawn", drawn, "| KITTI", kitti, "|", others)
assert all(found == drawn for found in others.values()), "another writer changed"
assert kitti == {"cat": 8 * 10 - 20, "dog": 20}, "behaviour changed"
PYTHON
