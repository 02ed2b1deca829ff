"""The one description of a data set that every stage reads: samples with tags, and maybe masks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

VOID = 255
"""Mask value of pixels that count for nothing."""

MAX_CLASSES = 254
"""Class ids are 1 to 254: masks are uint8 with 0 for background and 255 for void."""


@dataclass(frozen=True)
class CocoMask:
    """A mask to be drawn from COCO annotations: `segments` of (class id, COCO segmentation, is crowd), image size in
    pixels."""

    height: int
    width: int
    segments: tuple[tuple[int, Any, bool], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image. Images, masks and saliency maps may be members of tars (see tars.py), whose paths no file has.

    `id` is unique and names the image's outputs: its path below the image folder without suffix, with forward slashes.
    `tags` are class ids 1..C in ascending order (empty where unknown, on validation images only).
    `scored` is false where a mask exists but is not part of the official evaluation of pseudo-masks.
    """

    id: str
    image: Path
    tags: tuple[int, ...]
    split: Literal["train", "val"] = "train"
    mask: Path | CocoMask | None = None
    saliency: Path | None = None
    scored: bool = True


@dataclass(frozen=True)
class Dataset:
    """Samples of one data folder. Class id i (1..C) is `classes[i - 1]`; 0 is background.

    `mask_ids` maps values in mask files to class ids where the two differ (0 and 255 always stand for themselves);
    None means that files hold class ids. `notes` are things worth telling the user about how the data was read.
    """

    root: Path
    layout: Literal["folder", "voc", "coco", "shards"]
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    mask_ids: Mapping[int, int] | None = None
    notes: tuple[str, ...] = field(default=())

    def split(self, name: Literal["train", "val"]) -> tuple[Sample, ...]:
        """Return the samples of one split, in order."""
        return tuple(sample for sample in self.samples if sample.split == name)
