"""Masks written and read by Datumaro in the formats that hold pixels."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import datumaro as dm
import numpy as np

FORMATS = ("coco_instances", "voc_segmentation", "cityscapes", "datumaro", "kitti_segmentation")

shapes = np.load(sys.argv[1])
ways = {kind: {} for kind in FORMATS}
for name in shapes:
    mask = shapes[name].astype(bool)
    for kind in FORMATS:
        try:
            annotations = [dm.Mask(mask, label=1, id=1, group=1)]
            media = dm.Image.from_numpy(np.zeros((*mask.shape, 3), np.uint8))
            item = dm.DatasetItem(id="a", subset="train", media=media, annotations=annotations)
            folder = f"{kind} {name}"
            # The wanted class is the second: KITTI's writer gives the background to the first.
            dm.Dataset.from_iterable([item], categories=["other", "a"]).export(folder, kind, save_media=True)
            back = dm.Dataset.import_from(folder, kind)
            names = [label.name for label in back.categories()[dm.AnnotationType.label]]
            seen = np.zeros(mask.shape, bool)
            for one in back:
                for annotation in one.annotations:
                    if annotation.type == dm.AnnotationType.mask and names[annotation.label] == "a":
                        seen |= np.asarray(annotation.image).astype(bool)
            ways[kind][name] = {"kind": "mask", "mask": seen.astype(int).tolist()}
        except Exception as error:
            ways[kind][name] = f"{type(error).__name__}: {error}".splitlines()[0][:60]
Path(sys.argv[2]).write_text(json.dumps({"version": version("datumaro"), "ways": ways}))
