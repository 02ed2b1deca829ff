"""Settings of section [data]: how a data folder is read."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt, Unit

from tagseg.settings.bounds import check_fields


@dataclass(frozen=True)
class DataSettings:
    """How a data folder is read."""

    layout: Literal["auto", "folder", "voc", "coco", "shards"] = "auto"
    """Layout of the data folder; auto detects it. shards: tar files in WebDataset's format."""

    train_list: str = ""
    """VOC: name of the list of training images in ImageSets/Segmentation or ImageSets/Main. Empty: the first that
    exists of train_aug, trainaug and train."""

    val_list: str = ""
    """VOC: name of the list of validation images. Empty: val, if it exists."""

    masks: str = ""
    """Folder of true masks, named like the images; used for evaluation only. Empty: the data folder's own folder masks,
    if it exists."""

    saliency: str = ""
    """Folder of saliency maps, named like the images. Empty: the data folder's own folder saliency, if it exists."""

    coco_protocol: bool = False
    """COCO: count as published results do: a crowd is an object like any other, in tags and in masks, and validation
    images without annotations are left out. Otherwise crowds are void, and an image without annotations is background.
    """

    min_images: Annotated[int, Ge(1), Unit("images")] = 5
    """Fewest training images that a class may have; a class with fewer is an error."""

    max_broken: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Largest share of training images that may be unreadable; they are skipped and listed. A larger share is an
    error."""

    max_megapixels: Annotated[float, Gt(0), Unit("megapixels")] = 120.0
    """Larger images are rejected before they are decoded (decompression bombs)."""

    def __post_init__(self) -> None:
        check_fields(self, "setting data.")
