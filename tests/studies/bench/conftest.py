"""Stand-ins for VOC 2012 and COCO 2014: the true layout, a few drawn images, protocols with their counts."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.masks.mask_files import write_mask
from tagseg.settings.settings import Settings
from tagseg.studies.bench.protocols import PROTOCOLS, Protocol

COLOURS = {"cat": "red", "dog": "blue", "person": "lime"}
VOC_IDS = {"cat": 8, "dog": 12, "person": 15}
TAGS = (("cat",), ("dog",), ("person",), ("cat", "dog"), ("dog", "person"))


Draw = Callable[[int, Sequence[str], Path], np.ndarray]


@pytest.fixture(scope="session")
def draw(draw_discs: Callable[..., tuple[Image.Image, Image.Image]]) -> Draw:
    """Return a function that draws a photograph of discs and returns its mask in VOC's ids."""

    def draw(seed: int, tags: Sequence[str], file: Path) -> np.ndarray:
        image, mask = draw_discs(seed, {COLOURS[tag]: VOC_IDS[tag] for tag in tags}, top=8, diameter=26)
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, quality=95)
        return np.asarray(mask)

    return draw


@pytest.fixture(scope="session")
def voc(draw: Draw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return VOCdevkit/VOC2012 with 15 training images (5 with masks), 3 of val and 2 of test, and saliency maps."""
    root = tmp_path_factory.mktemp("voc") / "VOCdevkit/VOC2012"
    names = [f"2008_{i:06}" for i in range(20)]
    for i, name in enumerate(names):
        tags = TAGS[i % 5]
        mask = draw(i, tags, root / f"JPEGImages/{name}.jpg")
        if i < 5 or 15 <= i < 18:
            write_mask(root / f"SegmentationClass/{name}.png", mask)
        if i < 18:
            objects = "".join(f"<object><name>{tag}</name></object>" for tag in tags)
            (root / "Annotations").mkdir(exist_ok=True)
            (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        if i < 15:
            (root / "saliency").mkdir(exist_ok=True)
            Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(root / f"saliency/{name}.png")
    lists = {"train_aug": names[:15], "train": names[:5], "val": names[15:18], "test": names[18:]}
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, listed in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{one}\n" for one in listed))
    return root


@pytest.fixture(scope="session")
def small_voc() -> Protocol:
    lists = {"train_aug": 15, "train": 5, "val": 3}
    return dataclasses.replace(PROTOCOLS["voc2012"], lists=lists, optional={"test": 2}, classes=3)


@pytest.fixture(scope="session")
def coco(draw: Draw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return COCO's folder: 11 and 4 images, of which 10 and 3 have annotations (one a crowd), and saliency maps."""
    root = tmp_path_factory.mktemp("coco") / "COCO"
    for split, count in (("train", 11), ("val", 4)):
        images, annotations = [], []
        for i in range(count):
            name, tags = f"COCO_{split}2014_{i:012}.jpg", () if i == count - 1 else TAGS[i % 5]
            mask = draw(100 + i, tags, root / f"{split}2014/{name}")
            if split == "train":
                (root / "saliency").mkdir(exist_ok=True)
                Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(root / f"saliency/{name[:-4]}.png")
            images.append({"id": i, "file_name": name, "height": 48, "width": 64})
            for number, tag in enumerate(tags):
                x, y, right, bottom = 4 + 28 * number, 8, 30 + 28 * number, 34
                outline = [x, y, right, y, right, bottom, x, bottom]
                entry = {"id": 100 * i + number, "image_id": i, "category_id": VOC_IDS[tag], "iscrowd": int(i == 0)}
                runs = {"size": [48, 64], "counts": [48 * x, 48 * (right - x), 48 * (64 - right)]}
                annotations.append({**entry, "area": 676, "segmentation": [outline] if i else runs})
        categories = [{"id": number, "name": name} for name, number in VOC_IDS.items()]
        file = root / f"annotations/instances_{split}2014.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


@pytest.fixture(scope="session")
def small_coco() -> Protocol:
    return dataclasses.replace(PROTOCOLS["coco2014"], lists={"train2014": 10, "val2014": 3}, classes=3)


@pytest.fixture(scope="session")
def quick(tiny: Settings) -> Settings:
    """Return settings that take seconds, with what the protocols ask for."""
    segment = dataclasses.replace(tiny.segment, epochs=1, batch=4, crop=32, max_side=64, predict_scales=(1.0,))
    report = dataclasses.replace(tiny.report, examples=2)
    rca = dataclasses.replace(tiny.rca, warmup=1)
    data = dataclasses.replace(tiny.data, min_images=1, coco_protocol=True)
    masks = dataclasses.replace(tiny.masks, max_side=64)
    return dataclasses.replace(tiny, maps="oaa", data=data, rca=rca, masks=masks, segment=segment, report=report)
