"""Multi-scale class activation maps of the tagged classes."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from tagseg.data.images import read_image
from tagseg.data.loading import to_tensor
from tagseg.data.records import Dataset
from tagseg.optimise import choose_device
from tagseg.progress import Track, silent
from tagseg.rca.aggregation import attend, posterior
from tagseg.rca.network import Maps, RcaNetwork
from tagseg.rca.train import load_network
from tagseg.run import Run, atomic_path
from tagseg.settings import LocaliseSettings, map_kind

MAP_STRIDE = 4
"""Image pixels per cell of a stored map."""


def localise(dataset: Dataset, run: Run, track: Track = silent) -> Path:
    """Store the maps of every training image's tags in `run.maps`, an .npz each (see `write_maps`); returns the folder.

    Images whose maps are there already are skipped, so an interrupted stage continues.
    """
    settings = run.settings()
    device = choose_device(settings.device)
    network, _ = load_network(run.network, device)
    samples = dataset.split("train")
    for sample in track(samples, "localise", len(samples)):
        target = map_file(run, sample.id)
        if not target.exists():
            image = read_image(sample.image, settings.data.max_megapixels)
            write_maps(target, localise_image(network, image, sample.tags, settings.localise), sample.tags)
    return run.maps


@torch.no_grad()
def localise_image(
    network: RcaNetwork, image: Image.Image, tags: tuple[int, ...], settings: LocaliseSettings
) -> Float[Tensor, "k h w"]:
    """Return the maps of an image's tags, each divided by its peak (0..1), averaged over scales and the mirrored image.

    Maps have a quarter of the image's resolution (of the reduced one where the image is larger than `max_side`).
    """
    device = network.prototypes.device
    width, height = image.size
    reduce = min(1.0, settings.max_side / max(width, height))
    size = max(round(height * reduce), 1), max(round(width * reduce), 1)
    kind = map_kind(settings, network.rca)
    total = torch.zeros(len(tags), *size, device=device)
    for scale in settings.scales:
        h, w = network.backbone.fitting_size(height * reduce * scale, width * reduce * scale)
        picture = to_tensor(image.resize((w, h), Image.Resampling.BILINEAR))[None].to(device)
        for mirrored in (False, True) if settings.flip else (False,):
            chosen = tag_maps(network, network(picture.flip(-1) if mirrored else picture), tags, kind)
            enlarged = network.backbone.enlarge(chosen, size)[0]
            total += enlarged.flip(-1) if mirrored else enlarged
    total = F.adaptive_avg_pool2d(total, (-(-size[0] // MAP_STRIDE), -(-size[1] // MAP_STRIDE)))
    peaks = total.amax((1, 2), keepdim=True)
    return (total / peaks.clamp_min(1e-6)).cpu()


def tag_maps(
    network: RcaNetwork, maps: Maps, tags: tuple[int, ...], kind: Literal["posterior", "refined", "coarse"]
) -> Float[Tensor, "b k h w"]:
    """Return the tags' maps of one kind, none below 0 (see `LocaliseSettings.maps`).

    A class the bank holds nothing of has no posterior: its refined map stands in.
    """
    columns = [tag - 1 for tag in tags]
    if kind == "coarse":
        return F.relu(maps.coarse[:, columns])
    refined = F.relu(maps.refined[:, columns])
    if kind == "refined" or maps.attention is None:
        return refined
    # Among the tags and background the shares are the same, whatever other entries the cells attend to.
    entries = [0, *tags]
    exists = network.exists[entries]
    attention = attend(maps.features, network.prototypes[entries], exists, network.rca.attention_temperature)
    usable = exists[1:].any(1) & exists[0].any()
    return torch.where(usable[:, None, None], posterior(attention, range(1, len(entries))), refined)


def map_file(run: Run, sample_id: str) -> Path:
    """Return where an image's maps lie."""
    return run.maps / f"{sample_id}.npz"


def write_maps(path: Path, maps: Float[Tensor, "k h w"], tags: tuple[int, ...]) -> None:
    """Write maps 0..1 as uint8 `maps` (k h w) with their class ids `classes` (k)."""
    quantised = (maps * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, maps=quantised, classes=np.array(tags, dtype=np.int64))


def read_maps(path: Path) -> tuple[UInt8[np.ndarray, "k h w"], tuple[int, ...]]:
    """Return an image's maps (0..255 = 0..peak) and their class ids."""
    with np.load(path, allow_pickle=False) as file:
        return file["maps"], tuple(int(c) for c in file["classes"])
