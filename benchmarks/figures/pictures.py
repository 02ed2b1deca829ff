"""Compose the README's picture from a finished run: image, map, pseudo-mask, prediction, truth.

    python -m benchmarks.figures.pictures RUN OUT.jpg --rows 4

The rows are evenly spaced over the images that the evaluation chose: nobody picked them.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tagseg.data.images import read_image, read_mask_file
from tagseg.data.prepare import prepare
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.evaluate import evenly_spaced, examples
from tagseg.masks.map_files import map_file, read_maps
from tagseg.masks.mask_files import mask_file
from tagseg.masks.palette import class_colours
from tagseg.masks.resize import enlarge
from tagseg.prediction.outputs import overlay
from tagseg.run.folder import Run

CELL = (240, 180)
GAP = 6
TITLES = ("image and tags", "map", "pseudo-mask", "segmenter", "truth")


def heat(image: Image.Image, maps: np.ndarray, classes: tuple[int, ...]) -> Image.Image:
    """Return the image with its maps overlaid, each in the colour of its class."""
    strength = enlarge(maps, (image.height, image.width))
    best = strength.argmax(0)
    colour = np.array(class_colours(255), np.float32)[np.array(classes)[best]]
    share = strength.max(0)[..., None] * 0.85
    return Image.fromarray((np.asarray(image) * (1 - share) + colour * share).round().astype(np.uint8))


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_args()
    run = Run(options.run)
    prepared = prepare(run)
    dataset = prepared.dataset
    shown = evenly_spaced(examples(dataset.split("train"), run.settings().report.examples), options.rows)
    width, height = CELL
    sheet = Image.new("RGB", (len(TITLES) * (width + GAP), 22 + len(shown) * (height + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(TITLES):
        draw.text((column * (width + GAP) + 4, 4), title, fill="black", font_size=13)
    for row, sample in enumerate(shown):
        image = read_image(sample.image)
        maps, classes = read_maps(map_file(run, sample.id))
        pictures = [image, heat(image, maps, classes)]
        for folder in (run.masks, run.predictions):
            pictures.append(overlay(image, read_mask_file(mask_file(folder, sample.id))))
        if sample.mask is not None:
            pictures.append(overlay(image, load_mask(sample, dataset, prepared.sizes[sample.id])))
        for column, picture in enumerate(pictures):
            picture.thumbnail(CELL)
            place = column * (width + GAP) + (width - picture.width) // 2, 22 + row * (height + GAP)
            sheet.paste(picture, place)
        tags = ", ".join(dataset.classes[tag - 1] for tag in sample.tags)
        corner = 4, 22 + row * (height + GAP) + 4
        draw.text(corner, tags, fill="white", font_size=14, stroke_width=2, stroke_fill="black")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out, quality=85)


if __name__ == "__main__":
    main()
