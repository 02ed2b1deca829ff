"""The description of a data set that every stage reads: samples with tags and, where known, masks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

VOID = 255
"""Mask value of pixels that are ignored in training and scores."""

MAX_CLASSES = 254
"""Class ids are 1 to 254: masks are uint8 with 0 for background and 255 for void."""


@dataclass(frozen=True)
class CocoMask:
    """A mask to draw from COCO annotations: `segments` are (class id, COCO segmentation, is crowd); sizes in pixels."""

    height: int
    width: int
    segments: tuple[tuple[int, Any, bool], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image. The paths of image, mask and saliency map may point into a tar (see tars.py).

    `id` is unique and names the image's outputs: its path below the image folder, without suffix, with forward slashes.
    `tags` are class ids 1..C in ascending order. A training image without tags shows none of the classes; a validation
    image without tags may also be one whose tags are unknown.
    `scored` is false if a mask exists but is not part of the official evaluation of pseudo-masks.
    """

    id: str
    image: Path
    tags: tuple[int, ...]
    split: Literal["train", "val"] = "train"
    mask: Path | CocoMask | None = None
    saliency: Path | None = None
    scored: bool = True


class Ignored(msgspec.Struct, frozen=True):
    """Files, rows or annotations that are not used: why, how many, the first names. `expected`: nothing is wrong."""

    reason: str
    count: int
    first: tuple[str, ...]
    expected: bool = False

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.count} {self.reason} ({', '.join(self.first)}{more})"


@dataclass(frozen=True)
class Dataset:
    """Samples of one data folder. Class id i (1..C) is `classes[i - 1]`; 0 is background.

    `mask_ids` maps the values in mask files to class ids (0 and 255 keep their meaning); None means that the files hold
    class ids; `mask_colours` maps colours (0xRRGGBB) to class ids. `notes` tell the user how the data was read,
    `ignored` what was found and not used.
    """

    root: Path
    layout: Literal["folder", "voc", "coco", "shards"]
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    mask_ids: Mapping[int, int] | None = None
    notes: tuple[str, ...] = field(default=())
    mask_colours: Mapping[int, int] | None = None
    ignored: tuple[Ignored, ...] = ()

    def split(self, name: Literal["train", "val"]) -> tuple[Sample, ...]:
        """Return the samples of one split, in order."""
        return tuple(sample for sample in self.samples if sample.split == name)
