"""Copy a VOC data folder and corrupt a share of the training images' tags."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np

Errors = list[tuple[str, str, str]]
"""Image id, class, and the error: wrong (tagged, not present) or missing (present, not tagged)."""


def corrupted(data: Path, out: Path, share: float, seed: int) -> Errors:
    """Make `out` a data folder like `data`, without its masks, with a share of all training tags corrupted.

    A corrupted tag is replaced by a class that the image does not show, gets such a class in addition, or is dropped,
    with equal probability. The only tag of an image is replaced instead, because every training image needs one.
    Returns what was changed.
    """
    lists = data / "ImageSets/Segmentation"
    train = set((lists / "train_aug.txt").read_text().split())
    with (data / "tags.csv").open(newline="", encoding="utf-8") as file:
        tags = {row["image"]: row["tags"].split() for row in csv.DictReader(file)}
    classes = sorted({tag for of_image in tags.values() for tag in of_image})
    every = [(image, tag) for image, of_image in tags.items() if Path(image).stem in train for tag in of_image]
    generator = np.random.default_rng(seed)
    errors: Errors = []
    for index in generator.choice(len(every), round(share * len(every)), replace=False):
        image, tag = every[index]
        absent = [name for name in classes if name not in tags[image]]
        kind = generator.choice(["swapped", "added", "dropped"])
        drops = kind == "swapped" or kind == "dropped"
        adds = kind != "dropped" or len(tags[image]) == 1
        if drops:
            tags[image].remove(tag)
            errors.append((Path(image).stem, tag, "missing"))
        if adds:
            tags[image].append(str(generator.choice(absent)))
            errors.append((Path(image).stem, tags[image][-1], "wrong"))
    out.mkdir(parents=True)
    for folder in ("JPEGImages", "ImageSets"):
        shutil.copytree(data / folder, out / folder)
    with (out / "tags.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "tags"])
        rows.writerows([image, " ".join(of_image)] for image, of_image in tags.items())
    (out / "errors.json").write_text(json.dumps(errors), encoding="utf-8")
    return errors
