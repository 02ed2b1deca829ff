"""What a trained memory bank holds and what images attend to: prototypes, nearest regions, similar classes."""

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
from tagseg.export.regions import regions
from tagseg.rca.bank import Bank
from tagseg.rca.network import Maps, RcaNetwork
from tagseg.rca.regions import pool_regions
from tagseg.run.folder import Run
from tagseg.settings.settings import Settings
from tagseg.system.progress import Track, silent
from tagseg.training.checkpoint import load_tensors, restore
from tagseg.training.loading import to_tensor

NO_PROTOTYPE = -2.0
"""Similarity to a prototype that does not exist: lower than any cosine."""

SMALLEST_AREA = 0.01
"""Areas with a smaller share of an image's cells, or with a single cell, are too small to be meaningful."""


@dataclass(frozen=True)
class Memory:
    """The memory bank after training, on the CPU. Entry 0 is background, entries 1..C are the classes.

    slots: slots per entry. filled: filled slots of each entry. prototypes: of unit length. exists: which prototypes
    exist. share: the share of its entry's slots that are nearest to each prototype.
    """

    slots: int
    filled: Int[Tensor, "e"]
    prototypes: Float[Tensor, "e k d"]
    exists: Bool[Tensor, "e k"]
    share: Float[Tensor, "e k"]


@dataclass(frozen=True)
class NearestRegions:
    """n regions of training images, compared with the prototypes.

    samples, cells, label: each region's image, its cells, and its entry. similarity: its cosine with every prototype of
    that entry (`NO_PROTOTYPE` where there is none). nearest: the entry of the nearest prototype overall.
    """

    samples: tuple[Sample, ...]
    cells: tuple[Bool[Tensor, "_ _"], ...]
    label: Int[Tensor, "n"]
    similarity: Float[Tensor, "n k"]
    nearest: Int[Tensor, "n"]

    def closest(self, entry: int, prototype: int) -> list[int]:
        """Return the indices of the entry's regions, the nearest to the prototype first."""
        own = (self.label == entry).nonzero().flatten().tolist()
        return sorted(own, key=lambda i: -float(self.similarity[i, prototype]))

    def members(self, entry: int, prototype: int) -> list[int]:
        """Return the indices of the entry's regions whose nearest prototype of the entry is this one, nearest first."""
        return [i for i in self.closest(entry, prototype) if int(self.similarity[i].argmax()) == prototype]


@dataclass(frozen=True)
class EntryPair:
    """Two entries, their two most similar prototypes, and the cosine of those."""

    entries: tuple[int, int]
    prototypes: tuple[int, int]
    similarity: float


@dataclass(frozen=True)
class Area:
    """A connected area of an image.

    cells: its cells. entry: the entry (0 background, 1..C classes) that gets most of their attention. shares: the share
    (0..1) of the attention that every entry gets. prototype: the prototype of `entry` that gets most of it. similarity:
    the cosine between that prototype and the area's mean feature.
    """

    cells: Bool[np.ndarray, "h w"]
    entry: int
    shares: Float[Tensor, "e"]
    prototype: int
    similarity: float


def load_memory(run: Run, network: RcaNetwork) -> Memory:
    """Read a trained network's memory bank and relate its slots to the network's prototypes.

    Raises:
        RunError: when the bank's file is missing or damaged, or the bank is empty.
    """
    file, rca = run.network / "bank.safetensors", network.rca

    def expected(_: dict[str, Any]) -> dict[str, Tensor]:
        with torch.device("meta"):  # takes no memory: a stranger's settings may ask for any size
            return Bank(len(network.prototypes), rca.slots, network.channels).state_dict()

    tensors, _ = load_tensors(file, expected)
    bank = Bank(len(network.prototypes), rca.slots, network.channels, rca.update, rca.momentum)
    restore(bank, tensors, file)
    if not bank.filled.any():
        reason = (
            f"no region was ever confident enough to enter it; train longer, or with --rca.confidence below "
            f"{rca.confidence}"
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
    """Return the share of each entry's written slots that are nearest, by cosine, to each of its prototypes."""
    similarity = torch.einsum("esd,ekd->esk", slots, prototypes).masked_fill(~exists[:, None], NO_PROTOTYPE)
    owner = F.one_hot(similarity.argmax(2), prototypes.shape[1]) * (written & exists.any(1, keepdim=True))[..., None]
    return owner.sum(1) / written.sum(1, keepdim=True).clamp_min(1)


def closest_pairs(memory: Memory) -> list[EntryPair]:
    """Return every pair of entries that have prototypes, the pair with the most similar prototypes first."""
    e, k, _ = memory.prototypes.shape
    flat, exists = memory.prototypes.flatten(0, 1), memory.exists.flatten()
    cosine = (flat @ flat.T).masked_fill(~(exists[:, None] & exists), NO_PROTOTYPE)
    best, where = cosine.reshape(e, k, e, k).permute(0, 2, 1, 3).flatten(2).max(2)
    held = memory.exists.any(1).nonzero().flatten().tolist()
    pairs = [
        EntryPair((a, b), divmod(int(where[a, b]), k), float(best[a, b]))
        for i, a in enumerate(held)
        for b in held[i + 1 :]
    ]
    return sorted(pairs, key=lambda pair: -pair.similarity)


def choose_samples(samples: Sequence[Sample], classes: int, per_class: int) -> list[Sample]:
    """Return up to `per_class` images of every class, evenly spaced over its list; each image once, in order."""
    tagged: dict[int, list[Sample]] = {label: [] for label in range(1, classes + 1)}
    for sample in samples:
        for tag in sample.tags:
            tagged[tag].append(sample)
    chosen = {sample.id for own in tagged.values() for sample in evenly_spaced(own, per_class)}
    return [sample for sample in samples if sample.id in chosen]


def find_regions(
    network: RcaNetwork, memory: Memory, samples: Sequence[Sample], settings: Settings, track: Track = silent
) -> NearestRegions:
    """Find the regions of images by the rule of training and their true tags, and compare them with the prototypes.

    Raises:
        DataError: when an image cannot be read.
    """
    owners, cells = [], []
    labels, embeddings = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, network.channels)]
    for sample in track(samples, "comparing training images", len(samples)):
        image = read_image(sample.image, settings.data.max_megapixels)
        maps = single_scale_maps(network, image, settings.localise.max_side)
        label, found, embedding = _sample_regions(network, maps, sample)
        owners += [sample] * len(label)
        cells += list(found)
        labels.append(label)
        embeddings.append(embedding)
    label = torch.cat(labels)
    return NearestRegions(tuple(owners), tuple(cells), label, *compare(torch.cat(embeddings), label, memory))


def compare(
    embeddings: Float[Tensor, "n d"], labels: Int[Tensor, "n"], memory: Memory
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n"]]:
    """Return each region's cosine with its label's prototypes, and the entry of the nearest prototype overall.

    A tie goes to the label itself.
    """
    cosine = torch.einsum("nd,ekd->nek", F.normalize(embeddings, dim=1), memory.prototypes)
    cosine = cosine.masked_fill(~memory.exists, NO_PROTOTYPE)
    rows = torch.arange(len(labels))
    similarity = cosine[rows, labels]
    best, nearest = cosine.amax(2).max(1)
    return similarity, nearest.where(best > similarity.amax(1), labels)


def attended_areas(network: RcaNetwork, memory: Memory, image: Image.Image, max_side: int) -> list[Area]:
    """Return an image's areas, classes before background, large before small, without tiny ones.

    The network sees the image at scale 1, reduced to a long side of `max_side` pixels if it is larger.
    """
    maps = single_scale_maps(network, image, max_side)
    features = maps.features.float().cpu()
    # Over all entries: with very many classes the network itself attends only to the likely ones.
    attention = network.attend(features, memory.prototypes, memory.exists)[0]
    entries: Int[np.ndarray, "h w"] = attention.sum(1).argmax(0).numpy()
    smallest = max(2, round(SMALLEST_AREA * entries.size))
    areas = []
    for cells in connected_areas(entries):
        if cells.sum() >= smallest:
            inside = torch.from_numpy(cells)
            given = attention[:, :, inside].mean(2)
            entry = int(entries[cells][0])
            prototype = int(given[entry].argmax())
            mean = F.normalize(features[0][:, inside].mean(1), dim=0)
            similarity = float(mean @ memory.prototypes[entry, prototype])
            areas.append(Area(cells, entry, given.sum(1), prototype, similarity))
    return sorted(areas, key=lambda area: (area.entry == 0, -int(area.cells.sum())))


def connected_areas(labels: Int[np.ndarray, "h w"]) -> list[Bool[np.ndarray, "h w"]]:
    """Return the areas of equal labels (0..254) that connect at cell edges, in reading order of their first cells."""
    parts = (part for region in regions((labels + 1).astype(np.uint8)) for part in region.parts(corners=False))
    return sorted((part.mask() for part in parts), key=lambda area: int(area.argmax()))


@torch.no_grad()
def single_scale_maps(network: RcaNetwork, image: Image.Image, max_side: int) -> Maps:
    """Return the network's maps of an image at scale 1, reduced to a long side of `max_side` pixels if it is larger."""
    reduce = reduction(image.size, max_side)
    h, w = network.backbone.fitting_size(image.height * reduce, image.width * reduce)
    picture = to_tensor(image.resize((w, h), Image.Resampling.BILINEAR))[None]
    maps: Maps = network(picture.to(network.prototypes.device))
    return maps


def _sample_regions(
    network: RcaNetwork, maps: Maps, sample: Sample
) -> tuple[Int[Tensor, "n"], Bool[Tensor, "n h w"], Float[Tensor, "n d"]]:
    tags = torch.zeros(1, maps.coarse.shape[1], dtype=torch.bool, device=maps.coarse.device)
    tags[0, [tag - 1 for tag in sample.tags]] = True
    mined = network.mine(maps, tags)
    return mined.label.cpu(), mined.cells.cpu(), pool_regions(maps.features, mined).float().cpu()
