"""Pascal VOC's devkit: palette PNGs, image lists, and a labelmap.txt with the colour of each class."""

import logging
from collections.abc import Sequence
from pathlib import Path

from tagseg.data.records import VOID
from tagseg.errors import DataError
from tagseg.export.masks import MaskSet, read_mask
from tagseg.masks.mask_files import mask_file, write_classes, write_mask
from tagseg.masks.palette import VOID_COLOUR, class_colours
from tagseg.settings.export import ExportSettings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track

log = logging.getLogger(__name__)


def write_voc(masks: MaskSet, folder: Path, settings: ExportSettings, track: Track) -> None:
    """Write `SegmentationClass/ID.png`, `ImageSets/Segmentation/SUBSET.txt`, labelmap.txt and classes.json.

    Raises:
        DataError: when a mask cannot be read, or an image list cannot hold an image's name.
    """
    write_atomically(folder / "ImageSets" / "Segmentation" / f"{masks.subset}.txt", image_list(masks))
    try:
        write_atomically(folder / "labelmap.txt", label_map(masks.classes, void=masks.unsure == "void"))
    except DataError as error:
        log.warning("labelmap.txt is left out (%s); classes.json lists the class of each value", error)
    for image in track(masks.images, "export", len(masks.images)):
        write_mask(mask_file(folder / "SegmentationClass", image.id), read_mask(masks, image))
    write_classes(folder / "SegmentationClass", masks.classes)


def label_map(classes: Sequence[str], void: bool = False) -> str:
    """Return the text of labelmap.txt: one `name:r,g,b::` per line, in the order of mask values, background first.

    With `void`, the last line has the colour of unsure pixels: readers such as Datumaro refuse colours without a line.

    Raises:
        DataError: when labelmap.txt cannot hold the name of a class.
    """
    names = ("background", *classes)
    for i, name in enumerate(names):
        # `splitlines` knows every line end that a reader may know, not just the line feed.
        if i and (":" in name or name[:1] == "#" or name != name.strip() or len(name.splitlines()) != 1):
            raise DataError(
                f"class {name!r}: labelmap.txt cannot hold this name, expected one line without a colon, without # at "
                "the start and without spaces around it"
            )
        if name in names[:i]:
            raise DataError(f"class {name!r}: labelmap.txt already has this name, expected another one")
    colours = class_colours(VOID)
    lines = [(name, colours[i]) for i, name in enumerate(names)]
    lines += [(void_name(classes), VOID_COLOUR)] if void else []
    return "".join(f"{name}:{','.join(map(str, colour))}::\n" for name, colour in lines)


def void_name(classes: Sequence[str]) -> str:
    """Return a name for unsure pixels that no class has and that `tagseg import` knows."""
    return next(name for name in ("void", "ignore", "ignored", "__ignore__", "unlabeled") if name not in classes)


def image_list(masks: MaskSet) -> str:
    """Return the text of an image list: one id per line.

    Raises:
        DataError: when an image list cannot hold the id of an image.
    """
    for image in masks.images:
        if image.id != image.id.strip() or image.id[:1] == "#" or len(image.id.splitlines()) != 1:
            raise DataError(
                f"{image.image}: an image list cannot hold the name {image.id!r}, expected one line without # at the "
                "start and without spaces around it"
            )
    return "".join(f"{image.id}\n" for image in masks.images)
