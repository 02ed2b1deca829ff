"""A Hugging Face image folder: images, masks, and one row of metadata per image."""

from pathlib import Path

from tagseg.export.folder import as_json
from tagseg.export.masks import MaskSet, read_mask
from tagseg.masks.mask_files import mask_file, write_classes, write_mask
from tagseg.settings.export import ExportSettings
from tagseg.system.files import atomic_path, write_atomically
from tagseg.system.progress import Track

_SPLITS = {"train": "train", "val": "validation", "default": "train"}

# Without the front matter, `datasets` would take words like "test" in a file name for splits.
_CARD = """---
configs:
- config_name: default
  data_files:
  - split: {split}
    path: {split}/**
task_categories:
- image-segmentation
---

`datasets.load_dataset` reads this folder into the columns `image`, `mask` (class ids) and `tags` (names of the
classes known to be in the image). `{split}/masks/classes.json` lists the class of each id.
"""


def write_huggingface(masks: MaskSet, folder: Path, settings: ExportSettings, track: Track) -> None:
    """Write `SPLIT/masks/ID.png`, `SPLIT/metadata.jsonl`, and a README.md that tells `datasets` the split.

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
            file.write(as_json(row) + "\n")


def huggingface_folder(masks: MaskSet) -> Path:
    """Return the folder of the images, relative to the export."""
    return Path(_SPLITS[masks.subset], "images")
