"""COCO and YOLO by supervision: load, save, load again."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import supervision as sv

shapes = np.load(sys.argv[1])


def dataset(mask):
    found = sv.Detections(xyxy=sv.mask_to_xyxy(mask[None]), mask=mask[None], class_id=np.array([0]))
    cv2.imwrite("images/a.png", np.zeros((*mask.shape, 3), np.uint8))
    return sv.DetectionDataset(classes=["a"], images=["images/a.png"], annotations={"images/a.png": found})


def segmentations(path):
    return {
        "kind": "coco",
        "segmentations": [one["segmentation"] for one in json.loads(Path(path).read_text())["annotations"]],
    }


def loaded(path, **options):
    return sv.DetectionDataset.from_coco("images", path, force_masks=True, **options)


def codes(mask):
    flat = mask.T.reshape(-1).astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, len(flat)]).tolist()
    return ([0] if flat[0] else []) + runs


def given(mask):
    dataset(mask)  # writes the image
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": box,
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": codes(mask)},
    }
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": mask.shape[1], "height": mask.shape[0]}],
        "categories": [{"id": 1, "name": "a", "supercategory": ""}],
        "annotations": [annotation],
    }
    Path("given.json").write_text(json.dumps(document))


def again(mask, **options):
    given(mask)
    loaded("given.json", **options).as_coco(annotations_path="again.json")
    return segmentations("again.json")


def new(mask):
    dataset(mask).as_coco(annotations_path="new.json")
    return segmentations("new.json")


def yolo(mask):
    dataset(mask).as_yolo(annotations_directory_path="labels", data_yaml_path="data.yaml")
    read = next(iter(sv.DetectionDataset.from_yolo("images", "labels", "data.yaml", force_masks=True)))[2]
    seen = np.zeros(mask.shape, bool) if read.mask is None else read.mask.any(0)
    return {"kind": "mask", "mask": seen.astype(int).tolist()}


WAYS = {
    "COCO masks, read and written": again,
    "the same with `use_iscrowd=False`": lambda mask: again(mask, use_iscrowd=False),
    "COCO, new masks": new,
    "YOLO": yolo,
}
Path("images").mkdir()
ways = {way: {} for way in WAYS}
for way, do in WAYS.items():
    for name in shapes:
        try:
            ways[way][name] = do(shapes[name].astype(bool))
        except Exception as error:
            ways[way][name] = f"{type(error).__name__}: {error}"[:60]
Path(sys.argv[2]).write_text(json.dumps({"version": version("supervision"), "ways": ways}))
