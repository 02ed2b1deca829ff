"""A Hugging Face image folder: images, their masks, and a row of metadata each."""

import json
from pathlib import Path

from tagseg.export.masks import MaskSet, read_mask
from tagseg.masks.mask_files import mask_file, write_classes, write_mask
from tagseg.settings.export import ExportSettings
from tagseg.system.files import atomic_path, write_atomically
from tagseg.system.progress import Track

_SPLITS = {"train": "train", "val": "validation", "default": "train"}

# Without it, words like "test" in a file's name would make splits.
_CARD = """---
configs:
- config_name: default
  data_files:
  - split: {split}
    path: {split}/**
task_categories:
- image-segmentation
---

`datasets.load_dataset` of this folder gives `image`, `mask` (class ids) and `tags` (names of the classes
that the image is known to show). `{split}/masks/classes.json` says what the ids mean.
"""


def write_huggingface(masks: MaskSet, folder: Path, settings: ExportSettings, track: Track) -> None:
    """Write `SPLIT/masks/ID.png`, `SPLIT/metadata.jsonl`, and README.md, by which `datasets` finds the split.

    Raises:
        DataError: when a mask cannot be read.
    """
    split = _SPLITS[masks.subset]
    write_atomically(folder / "README.md", _CARD.format(split=split))
    write_classes(folder / split / "masks", masks.classes)
    with atomic_path(folder / split / "metadata.jsonl") as temporary, temporary.open("w", encoding="utf-8") as file:
        for image in track(masks.images, "export", len(masks.images)):
            mask = mask_file(Path("masks"), image.id)
            write_mask(folder / split / mask, read_mask(masks, image))
            row = {
                "file_name": f"images/{image.name}",
                "mask_file_name": mask.as_posix(),
                "tags": [masks.classes[class_id - 1] for class_id in image.tags],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def huggingface_folder(masks: MaskSet) -> Path:
    """Return where in the export the images lie."""
    return Path(_SPLITS[masks.subset], "images")
