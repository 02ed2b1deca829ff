"""RCA on cached features: tag head, memory bank, contrast, prototypes; the backbone is not trained."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tagseg.data.records import Dataset, Sample
from tagseg.features.cache import FeatureCache
from tagseg.networks.registration import resize_cells
from tagseg.rca.bank import Bank
from tagseg.rca.contrast import contrast
from tagseg.rca.frozen import FrozenLayers
from tagseg.rca.held_out import HeldOutTags, count_tags, split_held_out
from tagseg.rca.kmeans import kmeans
from tagseg.rca.network import RcaNetwork, build_network
from tagseg.rca.tag_maps import has_posterior, tag_maps
from tagseg.rca.taught import TaughtEntries
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import MapKind, Settings
from tagseg.system.process import cores
from tagseg.system.progress import Track, map_side_by_side, silent
from tagseg.training.loop import History

log = logging.getLogger(__name__)

A = TypeVar("A")

HELD_OUT_SHARE = 0.2
"""Share of the images that choose how strongly the tag head's weights are penalised."""

PENALTIES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""L2 penalties that are tried."""

BACKGROUND_PARTS = 3
"""Most background regions of an image: what its background consists of, found by k-means."""

LEAST_SHARE = 0.03
"""Share of the cells that a tag's region has when the posterior gives the tag none: those where it is highest."""

Inputs = tuple[Float[Tensor, "1 l _ _"], Float[Tensor, "1 d _ _"]]
"""What heads and bank read of an image at one scale."""

Teach = Callable[[RcaNetwork], TaughtEntries]
"""Returns what a person taught, as entries of the bank of a network."""

CONTRAST_STEPS, CONTRAST_BATCH, CONTRAST_LR = 200, 256, 1e-3


@dataclass(frozen=True)
class Heads:
    """A network whose heads and bank were fitted on cached features, its bank, the figures of every round, and how well
    tags are recognised on photographs that were held out."""

    network: RcaNetwork
    bank: Bank
    history: History
    held_out: HeldOutTags


def fit_heads(
    dataset: Dataset,
    cache: FeatureCache,
    settings: Settings,
    track: Track = silent,
    teach: Teach | None = None,
) -> Heads:
    """Fit tag head, bank and prototypes on the cached features of the training images.

    The tag head gives class activation maps. In each of `rca.rounds` rounds every tag's region and parts of the
    background enter an empty bank, the contrast learns from them, and k-means finds prototypes. Regions of the first
    round are found in the class activation maps, those of later rounds in the posterior of the round before. A tag is
    known to be in its image, so its best cells always enter the bank, whatever the tag's probability: no class is left
    out.

    Images without tags are background everywhere.

    `teach` returns the entries that a person taught; their prototypes count in every round's posterior after the first.
    """
    rca, samples = settings.rca, dataset.split("train")
    torch.manual_seed(settings.seed)
    network = _build(len(dataset.classes), settings, cache)
    tags = tag_matrix(samples, len(dataset.classes))
    pooled = torch.stack(list(_each(partial(_pooled, network, cache), samples, track, "tag head")))
    head = fit_tags(pooled, tags, settings.seed)
    held_out = _check_tags(pooled, tags, settings.seed)
    with torch.no_grad():
        (conv,) = network.coarse_head
        conv.get_parameter("weight").copy_(head.weight[..., None, None])
        conv.get_parameter("bias").zero_()
        network.intercept.copy_(head.bias)
    log.info("tag head: average precision %.3f on held-out images, penalty %g", head.precision, head.penalty)
    history: History = []
    bank = Bank(len(dataset.classes) + 1, rca.slots, network.channels, rca.update, rca.momentum)
    for number in range(1, rca.rounds + 1):
        started = time.monotonic()
        generator = torch.Generator().manual_seed(settings.seed * 1000 + number)
        kind: MapKind = "coarse" if number == 1 else "posterior"
        bank = Bank(len(dataset.classes) + 1, rca.slots, network.channels, rca.update, rca.momentum)
        _fill(network, bank, cache, samples, kind, generator, track, number)
        row = {"epoch": number, "loss": head.loss, "tag_coarse": head.loss}
        if rca.contrast and number == 1:
            row["contrast"] = _learn_contrast(network, bank, settings, generator)
        network.refresh_prototypes(bank, generator)
        if teach is not None and network.taught is None:  # once: the contrast learns in the first round alone
            network.taught = teach(network)
        history.append(row | {"seconds": round(time.monotonic() - started, 2)})
    if rca.aggregation:
        _fit_refined(network, cache, samples, tags, head.penalty, track)
    return Heads(network.eval(), bank, history, held_out)


def tag_matrix(samples: Sequence[Sample], classes: int) -> Float[Tensor, "n c"]:
    """Return 1 where an image has a tag, else 0."""
    tags = torch.zeros(len(samples), classes)
    for row, sample in zip(tags, samples, strict=True):
        row[[class_id - 1 for class_id in sample.tags]] = 1
    return tags


@torch.no_grad()
def cached_maps(network: RcaNetwork, cache: FeatureCache, sample: Sample, kind: MapKind) -> Float[Tensor, "k h w"]:
    """Return the maps of an image's tags (0..1), averaged over the cached scales, in the cells of the largest one.

    Posteriors are probabilities; other maps are divided by their peak at every scale and after averaging.
    """
    return _join_scales(network, cached_inputs(network, cache, sample.id), sample.tags, kind)


def _join_scales(
    network: RcaNetwork, inputs: Sequence[Inputs], tags: tuple[int, ...], kind: MapKind
) -> Float[Tensor, "k h w"]:
    found = [_maps(network, *views, tags, kind) for views in inputs]
    cells = max((tuple(one.shape[1:]) for one in found), key=lambda size: size[0] * size[1])
    total = torch.zeros(len(tags), *cells)
    for one in found:
        if kind != "posterior":
            one = one / one.amax((1, 2), keepdim=True).clamp_min(1e-6)
        total += _resize(one, cells, network) / len(found)
    return total if kind == "posterior" else total / total.amax((1, 2), keepdim=True).clamp_min(1e-6)


def _maps(network: RcaNetwork, last: Tensor, features: Tensor, tags: tuple[int, ...], kind: MapKind) -> Tensor:
    """Return what `tag_maps` returns for one image, without the rest of the network where it is not needed."""
    tag = torch.tensor(tags, dtype=torch.long)
    if kind == "coarse":
        coarse: Tensor = network.coarse_head(last)
        return coarse[0, tag - 1].relu()
    if kind == "posterior" and has_posterior(network, tag).all():
        return network.posterior(features, torch.zeros_like(tag), tag)
    return tag_maps(network, network.maps(last, features), tags, kind)[0]


def _each(work: Callable[[Sample], A], samples: Sequence[Sample], track: Track, title: str) -> Iterator[A]:
    """Yield the results of images in their order, computed side by side."""
    with contextlib.closing(map_side_by_side(samples, work, cores())) as results:
        yield from track(results, title, len(samples))


@dataclass(frozen=True)
class TagHead:
    """Weights (per feature, without intercept) and intercepts of a linear tag classifier, its loss on all images, the
    penalty that was chosen, and the mean average precision of the held-out images with it."""

    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, "c"]
    loss: float
    penalty: float
    precision: float


def fit_tags(
    features: Float[Tensor, "n d"], tags: Float[Tensor, "n c"], seed: int, penalties: Sequence[float] = PENALTIES
) -> TagHead:
    """Fit a linear classifier of the tags to convergence (L-BFGS, multi-label soft margin loss).

    A rare class counts as much as a frequent one in the choice of the penalty: by the mean over classes of the average
    precision on held-out images.

    >>> features = torch.tensor([[3.0, 0.0], [2.0, 1.0], [0.0, 3.0], [1.0, 2.0]]).repeat(5, 1)
    >>> tags = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).repeat(5, 1)
    >>> head = fit_tags(features, tags, seed=0)
    >>> ((features @ head.weight.T + head.bias > 0) == tags.bool()).all().item(), head.precision
    (True, 1.0)
    """
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    x = (features - mean) / deviation / features.shape[1] ** 0.5
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held, rest = order.split([max(round(len(x) * HELD_OUT_SHARE), 1), len(x) - max(round(len(x) * HELD_OUT_SHARE), 1)])
    best = (-1.0, penalties[len(penalties) // 2])
    if len(penalties) > 1 and len(rest):
        for penalty in penalties:
            weight, bias, _ = _logistic(x[rest], tags[rest], penalty)
            best = max(best, (average_precision(x[held] @ weight.T + bias, tags[held].bool()), penalty))
    weight, bias, loss = _logistic(x, tags, best[1])
    weight = weight / deviation / features.shape[1] ** 0.5
    return TagHead(weight, bias - weight @ mean, loss, best[1], max(best[0], 0.0))


def _check_tags(features: Float[Tensor, "n d"], tags: Float[Tensor, "n c"], seed: int) -> HeldOutTags:
    """Return how well a classifier that learns from the other photographs recognises the tags of those held out."""
    rest, held = split_held_out(len(features), seed)
    if not len(rest):
        return count_tags(features.new_zeros(0, tags.shape[1]), tags[:0])
    head = fit_tags(features[rest], tags[rest], seed)
    return count_tags(features[held] @ head.weight.T + head.bias, tags[held])


def average_precision(scores: Float[Tensor, "n c"], truth: Bool[Tensor, "n c"]) -> float:
    """Return the average precision of each class that has a positive, and of these the mean (0 if there are none)."""
    ranked = truth.gather(0, scores.argsort(0, descending=True)).float()
    found = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)[:, None]
    positives = ranked.sum(0)
    each = (found * ranked).sum(0) / positives.clamp_min(1)
    return float(each[positives > 0].mean()) if (positives > 0).any() else 0.0


def _logistic(
    x: Float[Tensor, "n d"], tags: Float[Tensor, "n c"], penalty: float
) -> tuple[Float[Tensor, "c d"], Float[Tensor, "c"], float]:
    weight = torch.zeros(tags.shape[1], x.shape[1], requires_grad=True)
    bias = torch.zeros(tags.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Float[Tensor, ""]:
        optimizer.zero_grad()
        fit = F.binary_cross_entropy_with_logits(x @ weight.T + bias, tags, reduction="none").sum(1).mean()
        total = fit + penalty * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        fit = F.binary_cross_entropy_with_logits(x @ weight.T + bias, tags)
    return weight.detach(), bias.detach(), float(fit)


def _build(classes: int, settings: Settings, cache: FeatureCache) -> RcaNetwork:
    kept = [(layer.channels, layer.kept(cache.index.source.channels)) for layer in cache.layers]
    layers = FrozenLayers([layer.name for layer in cache.layers], kept)
    layers.take([cache.projections[layer.name] for layer in cache.layers])
    return build_network(classes, settings.train, settings.rca, layers=layers).eval()


def cached_inputs(network: RcaNetwork, cache: FeatureCache, sample_id: str) -> list[Inputs]:
    """Return the inputs of heads and bank at every cached scale."""
    assert network.layers is not None
    maps, count = cache.maps(sample_id), len(cache.scales)
    return [
        network.layers.join(
            [torch.from_numpy(np.array(one)).float()[None] for one in maps[scale::count]], network.backbone.grid
        )
        for scale in range(count)
    ]


@torch.no_grad()
def fine_features(network: RcaNetwork, cache: FeatureCache, sample_id: str) -> Float[Tensor, "d h w"]:
    """Return the features of an image's cells at the largest cached scale, as the bank compares them: of unit length,
    rounded to half precision."""
    return F.normalize(cached_inputs(network, cache, sample_id)[cache.finest][1][0], dim=0).half().float()


@torch.no_grad()
def _pooled(network: RcaNetwork, cache: FeatureCache, sample: Sample) -> Float[Tensor, "l"]:
    return torch.stack([last.mean((0, 2, 3)) for last, _ in cached_inputs(network, cache, sample.id)]).mean(0)


def _resize(maps: Float[Tensor, "k h w"], cells: Sequence[int], network: RcaNetwork) -> Float[Tensor, "k y x"]:
    if not len(maps):
        return maps.new_zeros(0, *cells)
    grid = network.backbone.grid
    return resize_cells(maps[None], cells, grid.cornered, grid.shift, grid.shift)[0]


@torch.no_grad()
def _fill(
    network: RcaNetwork,
    bank: Bank,
    cache: FeatureCache,
    samples: Sequence[Sample],
    kind: MapKind,
    generator: torch.Generator,
    track: Track,
    number: int,
) -> None:
    """Write regions of images in random order into the bank until its entries are full."""
    order = torch.randperm(len(samples), generator=generator).tolist()
    seeds = torch.randint(1 << 62, (len(samples),), generator=generator).tolist()
    slots = bank.slots.shape[1]

    def find(numbered: tuple[int, Sample]) -> tuple[Sample, list[tuple[Tensor, Tensor]]]:
        place, sample = numbered
        full = bank.filled >= slots  # and stays so: what is left out here, the loop below would not write
        if full[[0, *sample.tags]].all():
            return sample, []
        own = torch.Generator().manual_seed(seeds[place])
        return sample, list(_regions(network, cache, sample, kind, own, not full[0]))

    chosen = [(place, samples[i]) for place, i in enumerate(order)]
    with contextlib.closing(map_side_by_side(chosen, find, cores())) as found:
        for sample, regions in track(found, f"memory bank, round {number}", len(samples)):
            full = bank.filled >= slots
            if not full[[0, *sample.tags]].all():
                for embeddings, labels in regions:
                    if not (full[0] and (labels == 0).all()):
                        bank.write(embeddings, labels)


def _regions(
    network: RcaNetwork,
    cache: FeatureCache,
    sample: Sample,
    kind: MapKind,
    generator: torch.Generator,
    background_too: bool | Bool[Tensor, ""],
) -> Iterator[tuple[Float[Tensor, "n d"], Int[Tensor, "n"]]]:
    """Yield the embeddings of an image's regions and parts of background at every scale, with their labels."""
    inputs = cached_inputs(network, cache, sample.id)
    maps = _join_scales(network, inputs, sample.tags, kind)
    for _, features in inputs:
        shares = _resize(maps, features.shape[2:], network)
        flat = F.normalize(features[0].flatten(1), dim=0)
        if sample.tags:
            cells, labels = mine_relative(shares, sample.tags, kind, network.rca)
            yield cells.flatten(1).float() @ flat.T, labels
        background = _background(shares, kind, network.rca).flatten()
        if background_too and network.rca.background and background.any():
            parts = _parts(flat[:, background].T, generator)
            yield parts, torch.zeros(len(parts), dtype=torch.long)


def mine_relative(
    shares: Float[Tensor, "k h w"], tags: Sequence[int], kind: MapKind, rca: RcaSettings
) -> tuple[Bool[Tensor, "k h w"], Int[Tensor, "k"]]:
    """Return a region for each of an image's tags, none of them empty, and their labels.

    Class activation maps: the cells above `rca.region_threshold` of the map's peak. Posteriors: the cells that the tag
    has at least half of, and more of than the image's other tags; if there are fewer than two, those where it is
    highest (`LEAST_SHARE`).

    >>> shares = torch.tensor([[[0.9, 0.6, 0.1]], [[0.1, 0.2, 0.3]]])
    >>> mine_relative(shares, (3, 5), "posterior", RcaSettings())[0].int().tolist()
    [[[1, 1, 0]], [[0, 0, 1]]]
    """
    if kind != "posterior":
        cells = shares > rca.region_threshold * shares.amax((1, 2), keepdim=True)
    else:
        cells = (shares >= 0.5) & (shares == shares.amax(0, keepdim=True))
    flat = shares.flatten(1)
    best = flat >= flat.topk(max(round(LEAST_SHARE * flat.shape[1]), 1), dim=1).values[:, -1:]
    few = cells.flatten(1).sum(1) < 2
    return torch.where(few[:, None, None], best.view_as(cells), cells), torch.tensor(tags, dtype=torch.long)


def _background(shares: Float[Tensor, "k h w"], kind: MapKind, rca: RcaSettings) -> Bool[Tensor, "h w"]:
    if not len(shares):
        return torch.ones(shares.shape[1:], dtype=torch.bool)
    if kind == "posterior":
        return shares.sum(0) < 0.4
    return shares.amax(0) < rca.background_threshold


def _parts(cells: Float[Tensor, "n d"], generator: torch.Generator) -> Float[Tensor, "k d"]:
    """Return the centres of the parts that an image's background cells fall into."""
    valid = torch.ones(1, len(cells), dtype=torch.bool)
    centres, exists = kmeans(cells[None], valid, min(BACKGROUND_PARTS, len(cells)), generator, iterations=4)
    return centres[0][exists[0]]


def _learn_contrast(network: RcaNetwork, bank: Bank, settings: Settings, generator: torch.Generator) -> float:
    """Learn the linear map `mix` that brings regions of a class together and others apart (RCA, eq. 3); the bank's
    regions follow it."""
    assert network.layers is not None
    entry, slot = bank.written.nonzero(as_tuple=True)
    regions, identity = bank.slots[entry, slot], torch.eye(bank.slots.shape[2])
    mix = torch.nn.Parameter(identity.clone())
    optimizer = torch.optim.Adam([mix], CONTRAST_LR)
    loss = 0.0
    for _ in range(CONTRAST_STEPS):
        drawn = torch.randint(len(regions), (min(CONTRAST_BATCH, len(regions)),), generator=generator)
        slots = F.normalize(bank.slots @ mix.detach().T, dim=2)
        embeddings = F.normalize(regions[drawn] @ mix.T, dim=1)
        losses = contrast(
            embeddings, entry[drawn], slots, bank.written, settings.rca.temperature, settings.rca.negatives, generator
        )
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        loss = float(losses.detach().mean())
    with torch.no_grad():
        network.layers.get_buffer("mix").copy_(mix @ network.layers.get_buffer("mix"))
        bank.slots.copy_(F.normalize(bank.slots @ mix.T, dim=2))
    return loss


def _fit_refined(
    network: RcaNetwork,
    cache: FeatureCache,
    samples: Sequence[Sample],
    tags: Float[Tensor, "n c"],
    penalty: float,
    track: Track,
) -> None:
    """Fit the head of the refined map on context and features, as the tag head."""

    @torch.no_grad()
    def context_and_features(sample: Sample) -> Tensor:
        means = []
        for last, features in cached_inputs(network, cache, sample.id):
            attention = network.attend(features, network.prototypes, network.exists).mean((0, 3, 4))
            context = (attention[..., None] * network.prototypes).sum((0, 1))
            means.append(torch.cat([context, last.mean((0, 2, 3))]))
        return torch.stack(means).mean(0)

    rows = list(_each(context_and_features, samples, track, "refined map"))
    head = fit_tags(torch.stack(rows), tags, 0, (penalty,))
    with torch.no_grad():
        network.refined_head.get_parameter("weight").copy_(head.weight[..., None, None])
        network.refined_head.get_parameter("bias").copy_(head.bias)
