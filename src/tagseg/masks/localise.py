"""Multi-scale class activation maps of the tagged classes."""

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from tagseg.data.check import require_saliency
from tagseg.data.images import read_image, read_saliency, reduced_size
from tagseg.data.records import Dataset, Sample
from tagseg.features.cache import FeatureCache
from tagseg.features.fused import fuse
from tagseg.masks.map_files import map_file, write_maps
from tagseg.networks.backbones import Backbone
from tagseg.rca.heads import cached_maps
from tagseg.rca.network import RcaNetwork
from tagseg.rca.oaa import read_accumulated
from tagseg.rca.rivals import RIVALS, reactivate, rival_maps, share_saliency
from tagseg.rca.tag_maps import has_posterior, tag_maps
from tagseg.rca.train import load_network
from tagseg.run.folder import Run
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.settings import Settings, map_kind
from tagseg.system.process import cores
from tagseg.system.progress import Track, images_per_s, map_ahead, map_side_by_side, silent
from tagseg.training.device import choose_device
from tagseg.training.loading import to_tensor

log = logging.getLogger(__name__)

MAP_STRIDE = 4
"""Image pixels per cell of a stored map."""

WORTH_A_TRACE = 50
"""Images from which on the backbone is traced for them, which takes some seconds."""

READERS = 2
WRITERS = 2
"""Threads that decode images and threads that write maps while the network runs."""


@dataclass(frozen=True)
class Localised:
    """The folder of the maps, the number of images localised by this call, and images per second."""

    folder: Path
    images: int
    images_per_s: float


class Views(NamedTuple):
    """An image prepared for the network: one picture per scale, and the (height, width) in pixels of its maps."""

    pictures: tuple[Image.Image, ...]
    size: tuple[int, int]


_Seen = tuple[Sample, Views | Tensor | None]
"""An image, and its views or its maps; None if they exist."""

_Found = tuple[Sample, Tensor | None]
"""An image and its maps; None if they exist."""


def localise(
    dataset: Dataset,
    run: Run,
    track: Track = silent,
    samples: Sequence[Sample] | None = None,
    then: Callable[[Sample], None] | None = None,
    cache: FeatureCache | None = None,
) -> Localised:
    """Store the maps of every training image's tags in `run.maps`, one .npz file per image (see `write_maps`).

    With maps = oaa these are the accumulated maps, or the network's own for a tag that was never predicted. Images that
    already have maps are skipped, so an interrupted stage resumes. `samples` limits the work to these samples: an
    ablation only needs the images that are scored. `then` is called with every sample once its maps exist. With a
    `cache` of features no image is read: the network must be a frozen one. The rivals among `maps` need one.

    Raises:
        DataError: naming the image, when it or its saliency map (maps = saliency) cannot be read.
    """
    settings = run.settings()
    run.require_unchanged("train", run.network / "network.safetensors")
    network, _ = load_network(run.network, choose_device(settings.device))
    accumulated = read_accumulated(run.network) if settings.maps == "oaa" else None
    assert cache is not None or settings.maps not in RIVALS, "rivals are computed from cached features"
    if settings.maps == "saliency":
        require_saliency(dataset, settings.data, "maps = saliency")
    if settings.maps == "recam" and cache is not None:
        reactivate(network, cache, dataset.split("train"), track)
    samples = dataset.split("train") if samples is None else samples
    side_by_side = cache is not None or (len(samples) >= WORTH_A_TRACE and _computes_fused(network))

    def read(sample: Sample) -> _Seen:
        if map_file(run, sample.id).exists():
            return sample, None
        if cache is not None:
            return sample, from_cache(network, cache, sample, settings)
        image = read_image(sample.image, settings.data.max_megapixels)
        return sample, views(network.backbone, image, settings.localise)

    def find(one: _Seen) -> _Found:
        sample, seen = one
        if seen is None or isinstance(seen, Tensor):
            return sample, seen
        if accumulated is None:
            return sample, localise_views(network, seen, sample.tags, settings.localise)
        array, rows = accumulated
        return sample, complete(array[rows[sample.id]], network, seen, sample.tags, settings.localise)

    def write(found: _Found) -> tuple[Sample, bool]:
        sample, maps = found
        if maps is not None:
            write_maps(map_file(run, sample.id), maps.numpy(), sample.tags)
        return sample, maps is not None

    started, images = time.monotonic(), 0
    if side_by_side:
        found = map_side_by_side(samples, lambda sample: write(find(read(sample))), cores())
    else:  # the whole machine computes one image, because passes of the backbone itself share its hooks
        found = _in_turn(samples, read, find, write)
    with contextlib.closing(found):
        for sample, new in track(found, "localise", len(samples)):
            images += new
            if then is not None:
                then(sample)
    pace = images_per_s(images, time.monotonic() - started)
    log.info("localise: %d images, %.1f images/s", images, pace)
    return Localised(run.maps, images, pace)


def _computes_fused(network: RcaNetwork) -> bool:
    """Let the backbone compute by a fused pass, if there is one, and tell whether there is."""
    fused = None if network.layers is not None else fuse(network.backbone, network.backbone.head_layers)
    if fused is not None:
        network.backbone.compute_by(fused)
    return fused is not None


def _in_turn(
    samples: Sequence[Sample],
    read: Callable[[Sample], _Seen],
    find: Callable[[_Seen], _Found],
    write: Callable[[_Found], tuple[Sample, bool]],
) -> Generator[tuple[Sample, bool]]:
    """Yield what `write` returns; images are decoded, and maps written, while the network runs."""
    with contextlib.closing(map_ahead(samples, read, READERS)) as decoded:
        yield from map_ahead((find(one) for one in decoded), write, WRITERS)


@torch.no_grad()
def from_cache(network: RcaNetwork, cache: FeatureCache, sample: Sample, settings: Settings) -> Float[Tensor, "k h w"]:
    """Return the maps of an image's tags in the form of `localise_views`, from its cached features.

    With maps = recam the network must have been reactivated (see `rivals.reactivate`).

    Raises:
        DataError: when the saliency map that maps = saliency needs cannot be read.
    """
    height, width = reduced_size(cache.size(sample.id), settings.features.max_side)
    cells = -(-height // MAP_STRIDE), -(-width // MAP_STRIDE)
    if not sample.tags:
        return torch.zeros(0, *cells)
    if settings.maps in RIVALS:
        maps = rival_maps(network, cache, sample, settings.maps)
    else:
        maps = cached_maps(network, cache, sample, map_kind(settings.localise, network.rca))
    pixels = network.backbone.enlarge(maps[None], (height, width))[0]
    maps = F.adaptive_avg_pool2d(pixels, cells)
    if settings.maps != "saliency":
        return maps
    assert sample.saliency is not None, f"{sample.id} has no saliency map"
    salient = np.asarray(read_saliency(sample.saliency, cells, settings.data.max_megapixels), np.float32)
    return share_saliency(maps, torch.from_numpy(salient / 255))


def complete(
    accumulated: UInt8[np.ndarray, "k g g"],
    network: RcaNetwork,
    seen: Views,
    tags: tuple[int, ...],
    settings: LocaliseSettings,
) -> Float[Tensor, "k h w"]:
    """Return the accumulated maps of an image's tags in the form of `localise_views`, or the network's own map for a
    tag that training never predicted."""
    if not tags:
        return localise_views(network, seen, tags, settings)
    found = torch.from_numpy(np.array(accumulated)).float()
    known = found.flatten(1).any(1)
    maps = F.interpolate(found[:, None], map_size(seen), mode="bilinear", align_corners=False, antialias=True)[:, 0]
    maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-6)
    return maps if known.all() else maps.where(known[:, None, None], localise_views(network, seen, tags, settings))


def views(backbone: Backbone, image: Image.Image, settings: LocaliseSettings) -> Views:
    """Return an image reduced to `max_side` and resized to every scale, at sizes that fit the backbone's cells."""
    size = image.height, image.width
    fitting = backbone.view_sizes(size, settings.max_side, settings.scales)
    size = reduced_size(size, settings.max_side)
    return Views(tuple(image.resize((w, h), Image.Resampling.BILINEAR) for h, w in fitting), size)


def map_size(seen: Views) -> tuple[int, int]:
    """Return the (height, width) of an image's maps in cells."""
    height, width = seen.size
    return -(-height // MAP_STRIDE), -(-width // MAP_STRIDE)


def localise_image(
    network: RcaNetwork, image: Image.Image, tags: tuple[int, ...], settings: LocaliseSettings
) -> Float[Tensor, "k h w"]:
    """Return the maps of an image's tags (see `localise_views`)."""
    return localise_views(network, views(network.backbone, image, settings), tags, settings)


@torch.no_grad()
def localise_views(
    network: RcaNetwork, seen: Views, tags: tuple[int, ...], settings: LocaliseSettings
) -> Float[Tensor, "k h w"]:
    """Return the maps of an image's tags (0..1), averaged over the scales and the mirrored image.

    Posteriors are probabilities; other maps are divided by their peak. The maps have a quarter of the resolution of the
    image, after its reduction to `max_side`.
    """
    if not tags:
        return torch.zeros(0, *map_size(seen))
    device = network.prototypes.device
    kind = map_kind(settings, network.rca, "eps" if network.background else "cam")
    total = torch.zeros(len(tags), *seen.size, device=device)
    for view in seen.pictures:
        picture = to_tensor(view)[None].to(device)
        for mirrored in (False, True) if settings.flip else (False,):
            chosen = tag_maps(network, network(picture.flip(-1) if mirrored else picture), tags, kind)
            enlarged = network.backbone.enlarge(chosen, seen.size)[0]
            total += enlarged.flip(-1) if mirrored else enlarged
    total = F.adaptive_avg_pool2d(total, map_size(seen))
    shares = total / total.amax((1, 2), keepdim=True).clamp_min(1e-6)
    if kind == "posterior":
        count = len(settings.scales) * (1 + settings.flip)
        shares = torch.where(
            has_posterior(network, torch.tensor(tags, device=device))[:, None, None], total / count, shares
        )
    return shares.cpu()
