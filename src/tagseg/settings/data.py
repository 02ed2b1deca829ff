"""Settings of [data]."""

from dataclasses import dataclass
from typing import Literal

from tagseg.settings.bounds import check


@dataclass(frozen=True)
class DataSettings:
    """How a data folder is read."""

    layout: Literal["auto", "folder", "voc", "coco", "shards"] = "auto"
    """Layout of the data folder (shards: tars as WebDataset writes them); auto recognises it."""

    train_list: str = ""
    """VOC: the list of training images (a name in ImageSets/Segmentation or ImageSets/Main). Empty: train_aug, trainaug
    or train, whichever exists first."""

    val_list: str = ""
    """VOC: the list of validation images. Empty: val, if it exists."""

    masks: str = ""
    """Folder of true masks named like the images, for evaluation only. Empty: `masks` in the data folder, if there."""

    saliency: str = ""
    """Folder of saliency maps named like the images. Empty: `saliency` in the data folder, if there."""

    coco_protocol: bool = False
    """COCO: count as the literature does. Crowds are objects like all others, in tags and masks, and validation images
    without annotations are left out. Otherwise crowds are void, and an empty image is background."""

    min_images: int = 5
    """A class with fewer training images than this is an error."""

    max_broken: float = 0.05
    """Unreadable images are skipped and listed; above this share of the training images the run fails."""

    max_megapixels: float = 120.0
    """Larger images are refused before they are decoded (decompression bombs)."""

    def __post_init__(self) -> None:
        check(self.min_images >= 1, "data.min-images", self.min_images, "at least 1")
        check(0 <= self.max_broken < 1, "data.max-broken", self.max_broken, "a share from 0 to 1")
        check(self.max_megapixels > 0, "data.max-megapixels", self.max_megapixels, "more than 0")
