"""One picture of a finished run: images with their tags, maps, pseudo-masks, the network's masks, and the truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from tagseg.data.images import read_image, read_mask_file
from tagseg.data.prepare import Prepared
from tagseg.data.records import Sample
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.evaluate import evenly_spaced, examples
from tagseg.masks.map_files import map_file, read_maps
from tagseg.masks.mask_files import mask_file
from tagseg.masks.overlay import overlay, overlay_maps
from tagseg.run.folder import Run

_CELL = (240, 180)
_GAP = 6
_HEADING = 22
_TITLES = ("image and tags", "map", "pseudo-mask", "network", "truth")
_NEW = "new image, no tags given"


def draw_overview(run: Run, prepared: Prepared, rows: int = 4, new: int = 0) -> Image.Image:
    """Return a sheet with a row per image: `rows` training images, then `new` ones of the validation split.

    They are evenly spaced over the images that the report shows: nobody picked them. A cell is empty where there is
    nothing to show, as the pseudo-mask of an image without tags.

    Raises:
        DataError: when an image or a mask cannot be read.
        RunError: when the maps are missing or damaged.
    """
    shown, dataset = run.settings().report.examples, prepared.dataset
    chosen = [
        *evenly_spaced(examples(dataset.split("train"), shown), rows),
        *evenly_spaced(examples(dataset.split("val"), shown), new),
    ]
    width, height = _CELL
    sheet = Image.new("RGB", (len(_TITLES) * (width + _GAP), _HEADING + len(chosen) * (height + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(_TITLES):
        draw.text((column * (width + _GAP) + 4, 4), title, fill="black", font_size=13)
    for row, sample in enumerate(chosen):
        top = _HEADING + row * (height + _GAP)
        for column, picture in enumerate(_cells(run, prepared, sample)):
            if picture is not None:
                picture = ImageOps.contain(picture, _CELL)
                sheet.paste(picture, (column * (width + _GAP) + (width - picture.width) // 2, top))
        tags = ", ".join(dataset.classes[tag - 1] for tag in sample.tags) if sample.split == "train" else _NEW
        draw.text((4, top + 4), tags, fill="white", font_size=14, stroke_width=2, stroke_fill="black")
    return sheet


def _cells(run: Run, prepared: Prepared, sample: Sample) -> Sequence[Image.Image | None]:
    """Return the pictures of an image, one for each of _TITLES."""
    image = read_image(sample.image, run.settings().data.max_megapixels)

    def masked(folder: Path) -> Image.Image | None:
        file = mask_file(folder, sample.id)
        return overlay(image, read_mask_file(file)) if file.exists() else None

    true = None
    if sample.mask is not None:
        true = overlay(image, load_mask(sample, prepared.dataset, prepared.sizes[sample.id]))
    return image, _map(run, sample, image), masked(run.final().masks), masked(run.predictions), true


def _map(run: Run, sample: Sample, image: Image.Image) -> Image.Image | None:
    """Return an image with its maps over it, each in the colour of its class."""
    file = map_file(run, sample.id)
    maps, classes = read_maps(file) if file.exists() else (np.zeros((0, 1, 1), np.uint8), ())
    return overlay_maps(image, maps, classes) if classes else None
