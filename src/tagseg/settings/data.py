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

    tags: str = ""
    """Table of the tags, for example tags.csv, where it is not in the data folder. Its paths are below the data folder.
    Empty: a file of tags in the data folder, or what its layout says."""

    train_list: str = ""
    """VOC: name of the list of training images in ImageSets/Segmentation or ImageSets/Main. Empty: the first that
    exists of train_aug, trainaug and train."""

    val_list: str = ""
    """VOC: name of the list of validation images. Empty: val, if it exists."""

    masks: str = ""
    """Folder of true masks, named like the images; used for evaluation only. Empty: masks in the data folder, if it
    exists."""

    saliency: str = ""
    """Folder of saliency maps, named like the images; docs/rivals.md has a command that makes them. Empty: saliency in
    the data folder, if it exists."""

    coco_protocol: bool = False
    """COCO: count as published results do: a crowd is an object like any other, in tags and in masks, and validation
    images without annotations are left out. Otherwise crowds are void, and an image without annotations is background.
    """

    negatives: str = "ask"
    """Tags that mean that a photograph shows none of the classes, separated by commas, for example background,none.
    ask: words that often mean this (background, none, N/A, good, ...) are an error that asks. Empty: every word is
    a class."""

    rename: str = ""
    """Classes to rename or merge, as OLD=NEW separated by commas, for example Cats=cat,hotdog=hot dog."""

    min_score: Annotated[float, Unit("score")] = 0.5
    """Tag files with scores of a classifier: a score of at least this much is a tag."""

    mask_values: str = ""
    """Meaning of the values in mask files as VALUE=CLASS separated by commas, for example 0=background,1=cat,255=dog.
    VALUE is a grey value or palette index, or a colour like #ff0000; CLASS may also be background or void. Empty: as
    labelmap.txt, class_names.txt or classes.json beside the masks say, or else class ids with 0 for background and 255
    for void."""

    min_images: Annotated[int, Ge(1), Unit("images")] = 5
    """Fewest training images that a class may have; a class with fewer is an error."""

    max_broken: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Largest share of training images that may be unreadable; they are skipped and listed. A larger share is an
    error."""

    max_megapixels: Annotated[float, Gt(0), Unit("megapixels")] = 120.0
    """Larger images are rejected before they are decoded (decompression bombs)."""

    def __post_init__(self) -> None:
        check_fields(self, "setting data.")
