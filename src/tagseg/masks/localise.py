"""Multi-scale class activation maps of the tagged classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from tagseg.data.images import read_image, reduction
from tagseg.data.loading import to_tensor
from tagseg.data.records import Dataset, Sample
from tagseg.optimise import choose_device
from tagseg.progress import Track, silent
from tagseg.rca.accumulate import read_accumulated
from tagseg.rca.network import RcaNetwork
from tagseg.rca.tagmaps import has_posterior, tag_maps
from tagseg.rca.train import load_network
from tagseg.run import Run, atomic_path
from tagseg.settings import LocaliseSettings, map_kind

MAP_STRIDE = 4
"""Image pixels per cell of a stored map."""


def localise(dataset: Dataset, run: Run, track: Track = silent, samples: Sequence[Sample] | None = None) -> Path:
    """Store the maps of every training image's tags in `run.maps`, an .npz each (see `write_maps`); returns the folder.

    With maps = oaa these are the accumulated maps; the network's stand in where a tag was never predicted. Images whose
    maps are there already are skipped, so an interrupted stage continues. With `samples` only theirs are made: an
    ablation needs no more than the images that are scored.
    """
    settings = run.settings()
    device = choose_device(settings.device)
    network, _ = load_network(run.network, device)
    accumulated = read_accumulated(run.network) if settings.maps == "oaa" else None
    samples = dataset.split("train") if samples is None else samples
    for sample in track(samples, "localise", len(samples)):
        target = map_file(run, sample.id)
        if not target.exists():
            image = read_image(sample.image, settings.data.max_megapixels)
            if accumulated is None:
                maps = localise_image(network, image, sample.tags, settings.localise)
            else:
                array, rows = accumulated
                maps = complete(array[rows[sample.id]], network, image, sample.tags, settings.localise)
            write_maps(target, maps, sample.tags)
    return run.maps


def complete(
    accumulated: UInt8[np.ndarray, "k g g"],
    network: RcaNetwork,
    image: Image.Image,
    tags: tuple[int, ...],
    settings: LocaliseSettings,
) -> Float[Tensor, "k h w"]:
    """Return the accumulated maps of an image's tags as `localise_image` returns maps; the network's where there is
    none, because training never predicted the tag."""
    found = torch.from_numpy(np.array(accumulated)).float()
    seen = found.flatten(1).any(1)
    height, width = reduced_size(image, settings)
    size = -(-height // MAP_STRIDE), -(-width // MAP_STRIDE)
    maps = F.interpolate(found[:, None], size, mode="bilinear", align_corners=False, antialias=True)[:, 0]
    maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-6)
    return maps if seen.all() else maps.where(seen[:, None, None], localise_image(network, image, tags, settings))


def reduced_size(image: Image.Image, settings: LocaliseSettings) -> tuple[int, int]:
    """Return the (height, width) in pixels to which an image is reduced before the scales are applied."""
    reduce = reduction(image, settings.max_side)
    return max(round(image.height * reduce), 1), max(round(image.width * reduce), 1)


@torch.no_grad()
def localise_image(
    network: RcaNetwork, image: Image.Image, tags: tuple[int, ...], settings: LocaliseSettings
) -> Float[Tensor, "k h w"]:
    """Return the maps of an image's tags (0..1), averaged over scales and the mirrored image.

    Posteriors are probabilities, other maps are divided by their peak. They have a quarter of the image's resolution
    (of the reduced one where the image is larger than `max_side`).
    """
    device = network.prototypes.device
    reduce = reduction(image, settings.max_side)
    size = reduced_size(image, settings)
    kind = map_kind(settings, network.rca, "eps" if network.background else "cam")
    total = torch.zeros(len(tags), *size, device=device)
    for scale in settings.scales:
        h, w = network.backbone.fitting_size(image.height * reduce * scale, image.width * reduce * scale)
        picture = to_tensor(image.resize((w, h), Image.Resampling.BILINEAR))[None].to(device)
        for mirrored in (False, True) if settings.flip else (False,):
            chosen = tag_maps(network, network(picture.flip(-1) if mirrored else picture), tags, kind)
            enlarged = network.backbone.enlarge(chosen, size)[0]
            total += enlarged.flip(-1) if mirrored else enlarged
    total = F.adaptive_avg_pool2d(total, (-(-size[0] // MAP_STRIDE), -(-size[1] // MAP_STRIDE)))
    shares = total / total.amax((1, 2), keepdim=True).clamp_min(1e-6)
    if kind == "posterior":
        views = len(settings.scales) * (1 + settings.flip)
        shares = torch.where(
            has_posterior(network, torch.tensor(tags, device=device))[:, None, None], total / views, shares
        )
    return shares.cpu()


def map_file(run: Run, sample_id: str) -> Path:
    """Return where an image's maps lie."""
    return run.maps / f"{sample_id}.npz"


def write_maps(path: Path, maps: Float[Tensor, "k h w"], tags: tuple[int, ...]) -> None:
    """Write maps 0..1 as uint8 `maps` (k h w) with their class ids `classes` (k)."""
    quantised = (maps * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, maps=quantised, classes=np.array(tags, dtype=np.int64))


def read_maps(path: Path) -> tuple[UInt8[np.ndarray, "k h w"], tuple[int, ...]]:
    """Return an image's maps (0..255 = 0..1) and their class ids."""
    with np.load(path, allow_pickle=False) as file:
        return file["maps"], tuple(int(c) for c in file["classes"])
