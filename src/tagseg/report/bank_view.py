"""What the bank of a finished training holds: its prototypes, the regions nearest to each, classes that look alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from tagseg.data.images import read_image, reduction
from tagseg.data.records import Sample
from tagseg.errors import RunError
from tagseg.evaluate.evaluate import evenly_spaced
from tagseg.rca.bank import Bank
from tagseg.rca.network import Maps, RcaNetwork
from tagseg.rca.regions import pool_regions
from tagseg.run.folder import Run
from tagseg.settings.settings import Settings
from tagseg.system.progress import Track, silent
from tagseg.training.checkpoint import load_tensors, restore
from tagseg.training.loading import to_tensor

NOTHING = -2.0
"""Stands for the cosine with a prototype that does not exist: below every cosine."""


@dataclass(frozen=True)
class Memory:
    """A finished training's bank, on the CPU: slots written per entry of `slots`, prototypes of unit length, which of
    them exist, and the share of its entry's slots that each is nearest to. Entry 0 is background, 1..C the classes."""

    slots: int
    filled: Int[Tensor, "e"]
    prototypes: Float[Tensor, "e k d"]
    exists: Bool[Tensor, "e k"]
    share: Float[Tensor, "e k"]


@dataclass(frozen=True)
class NearestRegions:
    """n regions of training images: the image and the cells of each, its label, its cosine with every prototype of that
    label (`NOTHING` where there is none), and the entry whose prototype is nearest of all."""

    samples: tuple[Sample, ...]
    cells: tuple[Bool[Tensor, "_ _"], ...]
    label: Int[Tensor, "n"]
    similarity: Float[Tensor, "n k"]
    nearest: Int[Tensor, "n"]

    def closest(self, entry: int, prototype: int) -> list[int]:
        """Return the entry's regions, those nearest to the prototype first."""
        mine = (self.label == entry).nonzero().flatten().tolist()
        return sorted(mine, key=lambda i: -float(self.similarity[i, prototype]))

    def members(self, entry: int, prototype: int) -> list[int]:
        """Return the entry's regions that are nearer to this prototype than to its other ones, the nearest first."""
        return [i for i in self.closest(entry, prototype) if int(self.similarity[i].argmax()) == prototype]


@dataclass(frozen=True)
class EntryPair:
    """Two entries, the two of their prototypes that lie closest, and the cosine of these."""

    entries: tuple[int, int]
    prototypes: tuple[int, int]
    similarity: float


def load_memory(run: Run, network: RcaNetwork) -> Memory:
    """Read the bank of a finished training, and how it lies about the network's prototypes.

    Raises:
        RunError: when the bank's file is missing or damaged, or nothing was ever written into the bank.
    """
    file, rca = run.network / "bank.safetensors", network.rca

    def expected(_: dict[str, Any]) -> dict[str, Tensor]:
        with torch.device("meta"):  # before any memory is taken: the settings may come from a stranger
            return Bank(len(network.prototypes), rca.slots, network.channels).state_dict()

    tensors, _ = load_tensors(file, expected)
    bank = Bank(len(network.prototypes), rca.slots, network.channels, rca.update, rca.momentum)
    restore(bank, tensors, file)
    if not bank.filled.any():
        reason = (
            f"no region was ever sure enough to enter it; train longer, or with --rca.confidence below {rca.confidence}"
            if rca.contrast or rca.aggregation
            else "the run was trained without contrast and aggregation; train with --rca.contrast or --rca.aggregation"
        )
        raise RunError(f"{file}: the bank is empty, so there is nothing to show: {reason}")
    prototypes, exists = F.normalize(network.prototypes.cpu(), dim=2), network.exists.cpu()
    share = slot_shares(bank.slots, bank.written, prototypes, exists)
    return Memory(rca.slots, bank.filled, prototypes, exists, share)


def slot_shares(
    slots: Float[Tensor, "e s d"],
    written: Bool[Tensor, "e s"],
    prototypes: Float[Tensor, "e k d"],
    exists: Bool[Tensor, "e k"],
) -> Float[Tensor, "e k"]:
    """Return the share of each entry's written slots that lies nearest to each of its prototypes, by cosine."""
    similarity = torch.einsum("esd,ekd->esk", slots, prototypes).masked_fill(~exists[:, None], NOTHING)
    owner = F.one_hot(similarity.argmax(2), prototypes.shape[1]) * (written & exists.any(1, keepdim=True))[..., None]
    return owner.sum(1) / written.sum(1, keepdim=True).clamp_min(1)


def closest_pairs(memory: Memory) -> list[EntryPair]:
    """Return every pair of entries that have prototypes, the pair with the closest prototypes first."""
    e, k, _ = memory.prototypes.shape
    flat, exists = memory.prototypes.flatten(0, 1), memory.exists.flatten()
    cosine = (flat @ flat.T).masked_fill(~(exists[:, None] & exists), NOTHING)
    best, where = cosine.reshape(e, k, e, k).permute(0, 2, 1, 3).flatten(2).max(2)
    held = memory.exists.any(1).nonzero().flatten().tolist()
    pairs = [
        EntryPair((a, b), divmod(int(where[a, b]), k), float(best[a, b]))
        for i, a in enumerate(held)
        for b in held[i + 1 :]
    ]
    return sorted(pairs, key=lambda pair: -pair.similarity)


def compare(
    embeddings: Float[Tensor, "n d"], labels: Int[Tensor, "n"], memory: Memory
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n"]]:
    """Return each region's cosine with its label's prototypes, and the entry with the prototype nearest of all.

    That is the label itself where it is as near as any other.
    """
    cosine = torch.einsum("nd,ekd->nek", F.normalize(embeddings, dim=1), memory.prototypes)
    cosine = cosine.masked_fill(~memory.exists, NOTHING)
    rows = torch.arange(len(labels))
    similarity = cosine[rows, labels]
    best, nearest = cosine.amax(2).max(1)
    return similarity, nearest.where(best > similarity.amax(1), labels)


def choose_samples(samples: Sequence[Sample], classes: int, per_class: int) -> list[Sample]:
    """Return up to `per_class` images of every class, evenly spaced over its list; each image once, in order."""
    tagged: dict[int, list[Sample]] = {label: [] for label in range(1, classes + 1)}
    for sample in samples:
        for tag in sample.tags:
            tagged[tag].append(sample)
    chosen = {sample.id for mine in tagged.values() for sample in evenly_spaced(mine, per_class)}
    return [sample for sample in samples if sample.id in chosen]


def find_regions(
    network: RcaNetwork, memory: Memory, samples: Sequence[Sample], settings: Settings, track: Track = silent
) -> NearestRegions:
    """Mine the images' regions with the training's rule, by their true tags, and compare them with the prototypes.

    Raises:
        DataError: when an image cannot be read.
    """
    owners, cells = [], []
    labels, embeddings = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, network.channels)]
    for sample in track(samples, "looking at training images", len(samples)):
        maps = see(network, read_image(sample.image, settings.data.max_megapixels), settings.localise.max_side)
        label, found, embedding = _regions(network, maps, sample)
        owners += [sample] * len(label)
        cells += list(found)
        labels.append(label)
        embeddings.append(embedding)
    label = torch.cat(labels)
    return NearestRegions(tuple(owners), tuple(cells), label, *compare(torch.cat(embeddings), label, memory))


@torch.no_grad()
def see(network: RcaNetwork, image: Image.Image, max_side: int) -> Maps:
    """Return the network's maps of an image at scale 1, reduced to a long side of `max_side` pixels where larger."""
    reduce = reduction(image.size, max_side)
    h, w = network.backbone.fitting_size(image.height * reduce, image.width * reduce)
    picture = to_tensor(image.resize((w, h), Image.Resampling.BILINEAR))[None]
    maps: Maps = network(picture.to(network.prototypes.device))
    return maps


def _regions(
    network: RcaNetwork, maps: Maps, sample: Sample
) -> tuple[Int[Tensor, "n"], Bool[Tensor, "n h w"], Float[Tensor, "n d"]]:
    tags = torch.zeros(1, maps.coarse.shape[1], dtype=torch.bool, device=maps.coarse.device)
    tags[0, [tag - 1 for tag in sample.tags]] = True
    regions = network.mine(maps, tags)
    return regions.label.cpu(), regions.cells.cpu(), pool_regions(maps.features, regions).float().cpu()


LEAST_SHARE = 0.01
"""Areas below this share of an image's cells, or of a single cell, are too small to say anything."""


@dataclass(frozen=True)
class Area:
    """A connected area of an image: its cells, the entry (0 background, 1..C classes) that gets most of their
    attention, the share (0..1) every entry gets, and the prototype of that entry that gets most, with the cosine
    between it and the area's mean feature."""

    cells: Bool[np.ndarray, "h w"]
    entry: int
    shares: Float[Tensor, "e"]
    prototype: int
    similarity: float


def attended_areas(network: RcaNetwork, memory: Memory, image: Image.Image, max_side: int) -> list[Area]:
    """Return an image's areas, classes before background, large before small; tiny ones are left out.

    The image is seen at scale 1, reduced to a long side of `max_side` pixels where larger.
    """
    maps = see(network, image, max_side)
    features = maps.features.float().cpu()
    # Among all entries: with very many classes the network attends to the likely ones alone.
    attention = network.attend(features, memory.prototypes, memory.exists)[0]
    entries: Int[np.ndarray, "h w"] = attention.sum(1).argmax(0).numpy()
    least = max(2, round(LEAST_SHARE * entries.size))
    areas = []
    for cells in connected(entries):
        if cells.sum() >= least:
            inside = torch.from_numpy(cells)
            given = attention[:, :, inside].mean(2)
            entry = int(entries[cells][0])
            prototype = int(given[entry].argmax())
            mean = F.normalize(features[0][:, inside].mean(1), dim=0)
            similarity = float(mean @ memory.prototypes[entry, prototype])
            areas.append(Area(cells, entry, given.sum(1), prototype, similarity))
    return sorted(areas, key=lambda area: (area.entry == 0, -int(area.cells.sum())))


def connected(labels: Int[np.ndarray, "h w"]) -> list[Bool[np.ndarray, "_ _"]]:
    """Return the areas of equal labels whose cells touch with a side, in reading order of their first cells."""
    height, width = labels.shape
    left = np.ones(labels.shape, bool)
    areas = []
    for start in np.ndindex(labels.shape):
        if not left[start]:
            continue
        area, waiting = np.zeros(labels.shape, bool), [start]
        while waiting:
            y, x = waiting.pop()
            if 0 <= y < height and 0 <= x < width and left[y, x] and labels[y, x] == labels[start]:
                left[y, x], area[y, x] = False, True
                waiting += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        areas.append(area)
    return areas
