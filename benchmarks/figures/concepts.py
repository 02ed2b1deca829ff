"""Draw the pictures of docs/concepts.md from a finished run on the drawn demo set.

    tagseg demo --out runs/demo
    python -m benchmarks.figures.concepts runs/demo/run docs/pictures

The images are the first training images with two or three tags, the regions the first of each class: nobody picked
them.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from PIL import Image, ImageDraw
from sklearn.manifold import TSNE

from tagseg.data.images import read_image, read_mask_file
from tagseg.data.prepare import prepare
from tagseg.data.records import Dataset, Sample
from tagseg.masks.localise import localise_image
from tagseg.masks.make import mask_image
from tagseg.masks.map_files import map_file, read_maps
from tagseg.masks.mask_files import mask_file
from tagseg.masks.overlay import overlay, overlay_maps
from tagseg.masks.palette import class_colours
from tagseg.rca.network import RcaNetwork
from tagseg.rca.regions import pool_regions
from tagseg.rca.train import load_network
from tagseg.run.folder import Run
from tagseg.settings.localise import LocaliseSettings
from tagseg.training.loading import to_tensor

SIDE, GAP, HEAD = 128, 5, 18
PER_CLASS = 7
Picture = Image.Image


def sheet(rows: list[list[Picture]], titles: list[str], names: list[str], out: Path) -> None:
    """Save rows of pictures as one, with titles above the columns and names left of the rows (either may be empty)."""
    left = 78 if names else 0
    columns = max(map(len, rows))
    size = left + columns * (SIDE + GAP) - GAP, HEAD * bool(titles) + len(rows) * (SIDE + GAP) - GAP
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for column, title in enumerate(titles):
        draw.text((left + column * (SIDE + GAP) + 2, 2), title, fill="black", font_size=11)
    for i, row in enumerate(rows):
        top = HEAD * bool(titles) + i * (SIDE + GAP)
        if names:
            draw.text((2, top + SIDE // 2 - 7), names[i], fill="black", font_size=12)
        for column, picture in enumerate(row):
            image.paste(picture.resize((SIDE, SIDE)), (left + column * (SIDE + GAP), top))
    image.save(out, quality=80)


def grey(image: Picture) -> Picture:
    """Return the image in grey, so that the colours of the classes are visible."""
    return image.convert("L").convert("RGB")


def maps_of(network: RcaNetwork, image: Picture, tags: tuple[int, ...], kind: str, run: Run) -> ndarray:
    """Return an image's maps of one kind, 0..255, k h w."""
    size = run.settings().localise.max_side
    settings = LocaliseSettings(max_side=size, kind=kind)  # type: ignore[arg-type]
    maps: ndarray = (255 * localise_image(network, image, tags, settings)).round().byte().numpy()
    return maps


def draw_maps(run: Run, network: RcaNetwork, samples: list[Sample], out: Path) -> None:
    """Draw the coarse map and the posterior of each tag."""
    rows = []
    for sample in samples[:3]:
        image, first = read_image(sample.image), sample.tags[:1]
        coarse, posterior = (maps_of(network, image, sample.tags, kind, run) for kind in ("coarse", "posterior"))
        under = grey(image)
        row = [image, overlay_maps(under, coarse[:1], first), overlay_maps(under, posterior[:1], first)]
        rows.append([*row, overlay_maps(under, posterior, sample.tags)])
    titles = ["picture", "CAM, first tag", "bank, first tag", "bank, all tags"]
    sheet(rows, titles, [], out / "concepts_maps.jpg")


def draw_masks(run: Run, samples: list[Sample], dataset: Dataset, out: Path) -> None:
    """Draw the way from maps to a mask: without and with the CRF, unsure pixels, prediction, truth."""
    settings, rows = run.settings(), []
    for sample in samples[:3]:
        image = read_image(sample.image)
        size = image.height, image.width
        maps, classes = read_maps(map_file(run, sample.id))
        plain, _ = mask_image(None, maps, classes, size, settings.mask_rule())
        kept = [read_mask_file(mask_file(folder, sample.id)) for folder in (run.decided_masks, run.masks)]
        assert isinstance(sample.mask, Path)
        masks = (plain, *kept, read_mask_file(sample.mask))
        rows.append([overlay_maps(grey(image), maps, classes), *(overlay(grey(image), mask) for mask in masks)])
    sheet(rows, ["maps", "without CRF", "dense CRF", "unsure left out", "true mask"], [], out / "concepts_masks.jpg")


def draw_rounds(run: Run, samples: list[Sample], out: Path) -> None:
    """Draw what a round of self-training starts from: the masks, and the predictions of the network trained on them."""
    seen = [sample for sample in samples if mask_file(run.predictions, sample.id).exists() and sample.mask][:3]
    rows = []
    for sample in seen:
        image = read_image(sample.image)
        folders = [mask_file(folder, sample.id) for folder in (run.masks, run.predictions)]
        assert isinstance(sample.mask, Path)
        rows.append([image, *(overlay(grey(image), read_mask_file(path)) for path in (*folders, sample.mask))])
    sheet(rows, ["picture", "pseudo-mask", "segmenter", "true mask"], [], out / "concepts_rounds.jpg")


@torch.no_grad()
def find_regions(
    network: RcaNetwork, samples: list[Sample], classes: int
) -> tuple[list[list[Picture]], Float[ndarray, "n d"], list[int]]:
    """Return crops of the first regions of background and every class, and all regions' features with their labels."""
    crops: list[list[Picture]] = [[] for _ in range(classes + 1)]
    features, labels = [], []
    for sample in samples:
        image = read_image(sample.image)
        maps = network(to_tensor(image)[None])
        tags = torch.zeros(1, classes, dtype=torch.bool)
        tags[0, [tag - 1 for tag in sample.tags]] = True
        regions = network.mine(maps, tags)
        pooled = torch.nn.functional.normalize(pool_regions(maps.features[:, : network.keys], regions), dim=1)
        for i, label in enumerate(regions.label.tolist()):
            features.append(pooled[i].numpy())
            labels.append(label)
            if len(crops[label]) < PER_CLASS:
                crops[label].append(cut_out(image, regions.cells[i].numpy()))
    return crops, np.stack(features), labels


def cut_out(image: Picture, cells: ndarray) -> Picture:
    """Return the image with everything outside the region's cells faded."""
    inside = np.asarray(Image.fromarray(cells).resize(image.size, Image.Resampling.NEAREST), bool)[..., None]
    pixels = np.asarray(image, np.float32)
    return Image.fromarray(np.where(inside, pixels, 0.15 * pixels + 0.85 * 255).astype(np.uint8))


def draw_bank(network: RcaNetwork, samples: list[Sample], names: tuple[str, ...], out: Path) -> None:
    """Draw regions of every class, and all regions and prototypes in two dimensions (t-SNE)."""
    crops, features, labels = find_regions(network, samples, len(names))
    sheet(crops, [], ["background", *names], out / "concepts_bank.jpg")
    keys = torch.nn.functional.normalize(network.prototypes[..., : network.keys], dim=2)
    prototypes = [(entry, keys[entry, k].numpy()) for entry, k in network.exists.nonzero().tolist()]
    every = np.concatenate([features, np.stack([vector for _, vector in prototypes])])
    flat = TSNE(random_state=0, perplexity=30, init="pca").fit_transform(every)
    flat = (flat - flat.min(0)) / (flat.max(0) - flat.min(0))
    marks = [*((label, False) for label in labels), *((entry, True) for entry, _ in prototypes)]
    (out / "concepts_regions.svg").write_text(scatter(flat, marks, ("background", *names)), encoding="utf-8")


def scatter(points: Float[ndarray, "n 2"], marks: list[tuple[int, bool]], names: tuple[str, ...]) -> str:
    """Return an SVG of points (0..1) in the colours of their classes; prototypes are large."""
    colours = ["#999999", *("#{:02x}{:02x}{:02x}".format(*colour) for colour in class_colours(len(names))[1:])]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 400" font-family="sans-serif" font-size="13">',
        '<rect width="640" height="400" fill="#fff"/>',
    ]
    for (x, y), (entry, prototype) in sorted(zip(points, marks, strict=True), key=lambda pair: pair[1][1]):
        look = 'r="6" stroke="#000" stroke-width="1.5"' if prototype else 'r="2" fill-opacity="0.6"'
        parts.append(f'<circle cx="{15 + 490 * x:.0f}" cy="{15 + 370 * y:.0f}" {look} fill="{colours[entry]}"/>')
    for i, name in enumerate(names):
        parts.append(f'<circle cx="530" cy="{30 + 22 * i}" r="6" fill="{colours[i]}"/>')
        parts.append(f'<text x="544" y="{35 + 22 * i}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    run = Run(options.run)
    dataset = prepare(run).dataset
    network, _ = load_network(run.network, torch.device("cpu"))
    samples = list(dataset.split("train"))
    several = [sample for sample in samples if len(sample.tags) > 1]
    options.out.mkdir(parents=True, exist_ok=True)
    draw_maps(run, network, several, options.out)
    draw_masks(run, several, dataset, options.out)
    draw_rounds(run, samples, options.out)
    draw_bank(network, samples, dataset.classes, options.out)


if __name__ == "__main__":
    main()
