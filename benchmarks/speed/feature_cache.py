"""Measure the cache of features: CPU time per image against plain passes of the backbone, and what the components lose.

    python -m benchmarks.speed.feature_cache --images 200
    python -m benchmarks.speed.feature_cache --images 40 --threads 1

Plain passes are those of the backbone alone, in fp32, one image at a time, at the same scales: no decoding, no
principal components, no files. Losses are shares of the variance of images on which the components were not computed.
Nothing is scored here.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks import harness
from benchmarks.harness import record
from PIL import Image

from tagseg.data.check import check_images
from tagseg.data.images import read_image
from tagseg.data.read import read_dataset
from tagseg.data.records import Sample
from tagseg.evaluate.evaluate import evenly_spaced
from tagseg.features.cache import FeatureCache
from tagseg.features.extract import extract
from tagseg.features.projection import Projection, unit
from tagseg.networks.backbones import Backbone, build_backbone
from tagseg.settings.data import DataSettings
from tagseg.settings.features import FeatureSettings
from tagseg.system.progress import bars
from tagseg.training.loading import to_tensor

PLAIN_IMAGES = 20
"""Images of the plain passes and of the losses; they are not among those of the cache."""


def main() -> None:
    """Measure every data set and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200, help="images in the cache")
    parser.add_argument("--sets", nargs="+", default=["voc_animals", "street_clothing"], help="folders beside --data")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="PyTorch's threads")
    options = harness.parse(parser)
    torch.set_num_threads(options.threads)
    backbone = build_backbone(options.backbone, str(options.weights), 16)
    rows = [
        "| data | ms per image | plain passes, ms | ratio | plain pass at scale 1, ms | kB per image | lost, % (each "
        "layer and scale) |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    figures: dict[str, Any] = {"images": options.images, "threads": options.threads}
    for name in options.sets:
        found = measure(options.data.parent / name, options.images, backbone)
        figures |= {f"{figure}_{name}": value for figure, value in found.items()}
        lost = ", ".join(
            f"{layer} " + "/".join(f"{100 * one:.1f}" for one in each) for layer, each in found["lost"].items()
        )
        numbers = ("ms", "plain_ms", "ratio", "plain_scale_1_ms", "kb")
        rows.append(f"| {name} | " + " | ".join(f"{found[number]:g}" for number in numbers) + f" | {lost} |")
    rows += ["", "Milliseconds are CPU time of the process; the cache's include decoding, components and files."]
    print(record(harness.name("feature_cache", options.backbone), [], figures, "\n".join(rows)).read_text())


def measure(data: Path, number: int, backbone: Backbone) -> dict[str, Any]:
    """Return the figures of one data set."""
    dataset, settings = read_dataset(data, DataSettings(), False), FeatureSettings()
    chosen = evenly_spaced(list(dataset.split("train")), number + PLAIN_IMAGES)
    held_out = chosen[:: max(len(chosen) // PLAIN_IMAGES, 1)][:PLAIN_IMAGES]
    cached = [sample for sample in chosen if sample not in held_out]
    sizes = check_images(dataclasses.replace(dataset, samples=tuple(cached)), DataSettings()).sizes
    pictures = [views(backbone, sample, settings) for sample in held_out]
    plain = plain_seconds(backbone, pictures)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        cache = extract(cached, sizes, backbone, settings, Path(folder), 120.0, bars)
        seconds = (time.process_time() - started) / len(cached)
        size = sum(shard.size for shard in cache.shards)
        lost = losses(cache, backbone, pictures)
    return {
        "ms": round(1000 * seconds),
        "plain_ms": round(1000 * sum(plain)),
        "ratio": round(seconds / sum(plain), 2),
        "plain_scale_1_ms": round(1000 * plain[settings.scales.index(1.0)]),
        "kb": round(size / len(cached) / 1000),
        "precision": cache.index.precision,
        "lost": lost,
        "lost_where_fitted": [round(share, 4) for share in cache.index.lost],
    }


def views(backbone: Backbone, sample: Sample, settings: FeatureSettings) -> list[torch.Tensor]:
    """Return an image at each scale, as a batch of one."""
    image = read_image(sample.image)
    sizes = backbone.view_sizes((image.height, image.width), settings.max_side, settings.scales)
    return [to_tensor(image.resize((w, h), Image.Resampling.BILINEAR))[None] for h, w in sizes]


@torch.no_grad()
def plain_seconds(backbone: Backbone, pictures: Sequence[list[torch.Tensor]]) -> list[float]:
    """Return the CPU seconds of a plain pass per image, at each scale."""
    found = []
    for scale in range(len(pictures[0])):
        backbone(pictures[0][scale])  # the first pass is slower
        started = time.process_time()
        for each in pictures:
            backbone(each[scale])
        found.append((time.process_time() - started) / len(pictures))
    return found


@torch.no_grad()
def losses(cache: FeatureCache, backbone: Backbone, pictures: Sequence[list[torch.Tensor]]) -> dict[str, list[float]]:
    """Return by layer, for each scale, the share of the variance of other images' cells that the cache would lose."""
    names = [layer.name for layer in cache.layers]
    sums = torch.zeros(len(names), len(cache.scales), 2, dtype=torch.float64)
    for each in pictures:
        for scale, picture in enumerate(each):
            for row, map_ in enumerate(backbone.layer_maps(picture, names)):
                sums[row, scale] += lost_and_all(map_, cache.projections[names[row]])
    shares = (sums[..., 0] / sums[..., 1]).tolist()
    return {name: [round(share, 4) for share in each] for name, each in zip(names, shares, strict=True)}


def lost_and_all(map_: torch.Tensor, projection: Projection) -> torch.Tensor:
    """Return the sum of squares that the components do not have, and that of all channels."""
    cells = unit(map_.permute(0, 2, 3, 1).flatten(0, 2)) - projection.mean
    kept = cells if projection.components is None else cells @ projection.components
    everything = cells.double().square().sum()
    return torch.stack([everything - kept.double().square().sum(), everything])


if __name__ == "__main__":
    main()
