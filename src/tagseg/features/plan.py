"""What a cache of features will hold: its images in shards, its size on the disk, and the time it takes."""

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from tagseg.data.records import Sample
from tagseg.data.tars import file_stamp
from tagseg.errors import RunError
from tagseg.features.cache import CachedImage, FeatureSource
from tagseg.features.layers import Layer, choose_layers
from tagseg.networks.backbones import RANDOM, TIMM, Backbone, build_backbone
from tagseg.settings.features import FeatureSettings
from tagseg.settings.train import TrainSettings
from tagseg.system.files import as_bytes

SHARD_BYTES = 1 << 27
"""A shard's data is about this large: what a kill loses at most, and the images among which batches of equal size are
found."""

_SPARE = 1 << 26
"""Bytes that must remain free on the disk."""


@dataclass(frozen=True)
class CacheEstimate:
    """The size of a cache in bytes, and the seconds that its computation takes here (None: not measured)."""

    images: int
    size: int
    seconds: float | None


def feature_source(
    backbone: Backbone, layers: tuple[Layer, ...], settings: FeatureSettings, weights: str
) -> FeatureSource:
    """Return what features are made from."""
    return FeatureSource(
        1, backbone.name, weights, layers, tuple(settings.scales), settings.max_side, settings.channels
    )


def plan_shards(
    samples: Sequence[Sample], sizes: Mapping[str, tuple[int, int]], backbone: Backbone, source: FeatureSource
) -> Iterator[tuple[CachedImage, ...]]:
    """Yield the images of each shard; samples appended to a data set leave all shards but the last as they are."""
    images: list[CachedImage] = []
    filled = 0
    for sample in samples:
        size = sizes[sample.id]
        views = tuple(backbone.view_sizes(size, source.max_side, source.scales))
        image = CachedImage(sample.id, file_stamp(sample.image), size, views)
        length = source.image_bytes(views)
        if images and filled + length > SHARD_BYTES:
            yield tuple(images)
            images, filled = [], 0
        images.append(image)
        filled += length
    if images:
        yield tuple(images)


def estimate_cache(
    sizes: Mapping[tuple[int, int], int], train: TrainSettings, settings: FeatureSettings
) -> CacheEstimate:
    """Return size and time of a cache before it is made, without the start weights.

    Args:
        sizes: number of images by (height, width) in pixels.
        train: settings of the backbone.
        settings: settings of the features.

    The time is measured on one image per scale, and only if the weights are a file or random: weights that timm would
    download are left alone.

    Raises:
        ValueError: as `build_backbone` and `choose_layers`.
    """
    with torch.device("meta"):
        backbone = build_backbone(train.backbone, RANDOM, train.stride)
        source = feature_source(backbone, choose_layers(backbone, settings.layers), settings, "")
    total = sum(
        count * source.image_bytes(backbone.view_sizes(size, settings.max_side, settings.scales))
        for size, count in sizes.items()
    )
    images = sum(sizes.values())
    if train.weights == TIMM or not images:
        return CacheEstimate(images, total, None)
    middle = sorted(sizes, key=math.prod)[len(sizes) // 2]
    timed = build_backbone(train.backbone, RANDOM, train.stride).to(memory_format=torch.channels_last)
    views = timed.view_sizes(middle, settings.max_side, settings.scales)
    return CacheEstimate(images, total, images * _seconds(timed, views, [layer.name for layer in source.layers]))


@torch.no_grad()
def _seconds(backbone: Backbone, views: Sequence[tuple[int, int]], layers: list[str]) -> float:
    pictures = [torch.rand(1, 3, *view).to(memory_format=torch.channels_last) for view in views]
    backbone.layer_maps(pictures[0], layers)  # the first pass is slower
    started = time.perf_counter()
    for picture in pictures:
        backbone.layer_maps(picture, layers)
    return time.perf_counter() - started


def require_space(
    folder: Path, shards: Sequence[tuple[CachedImage, ...]], missing: Sequence[int], source: FeatureSource, freed: int
) -> None:
    """Check that the disk has room for the missing shards, if `freed` bytes are deleted before.

    Raises:
        RunError: with the size, the free space, and what the settings would bring the size down to.
    """
    needed = sum(source.image_bytes(image.views) for number in missing for image in shards[number])
    free = shutil.disk_usage(folder).free + freed
    if not needed or needed + _SPARE <= free:
        return
    images = [image for shard in shards for image in shard]
    raise RunError(
        f"{folder}: the features of {len(images)} images need {as_bytes(needed)}, but {as_bytes(free)} are free on "
        f"this disk. Free some space, or lower the size of all features to {', '.join(_smaller(images, source))}"
    )


def _smaller(images: Sequence[CachedImage], source: FeatureSource) -> Iterator[str]:
    """Yield settings that make the cache smaller, each with the size that it leads to."""

    def size(less: FeatureSource, scales: slice = slice(None)) -> str:
        return as_bytes(sum(less.image_bytes(image.views[scales]) for image in images))

    fewer = max((source.channels or max(layer.channels for layer in source.layers)) // 4, 1)
    yield f"{size(msgspec.structs.replace(source, channels=fewer))} with --features.channels {fewer}"
    if len(source.scales) > 1:
        least = min(range(len(source.scales)), key=source.scales.__getitem__)
        one = msgspec.structs.replace(source, scales=source.scales[least : least + 1])
        yield f"{size(one, slice(least, least + 1))} with --features.scales {source.scales[least]:g}"
    if len(source.layers) > 1:
        coarse = msgspec.structs.replace(source, layers=source.layers[:1])
        yield f"{size(coarse)} with --features.layers {source.layers[0].name}"
