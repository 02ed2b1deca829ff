"""Rivals of the memory bank, to compare with: what other methods make of class activation maps, on cached features.

Each is the part of its method that needs no further training of the backbone, so that all of them, and the bank, see
the same features. They were written from the papers.
"""

from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tagseg.data.records import Sample
from tagseg.features.cache import FeatureCache
from tagseg.networks.registration import resize_cells
from tagseg.rca.heads import cached_inputs, cached_maps, fine_features
from tagseg.rca.network import RcaNetwork
from tagseg.settings.settings import Baseline, Rival
from tagseg.system.progress import Track, silent

RIVALS: tuple[Baseline, ...] = get_args(Rival)

WALK_POWER, WALK_STEPS, WALK_RADIUS = 4.0, 4, 5.0
"""The random walk: exponent of the similarity, number of steps, and how far a step goes (cells); chosen on images of
two data sets that are not scored."""

PENALTY = 1e-3
"""L2 penalty of the weights that tell regions apart."""


@torch.no_grad()
def rival_maps(network: RcaNetwork, cache: FeatureCache, sample: Sample, rival: Baseline) -> Float[Tensor, "k h w"]:
    """Return the maps (0..1) that a rival makes of an image's tags, in the cells of the largest cached scale.

    `recam` needs `reactivate` first. `saliency` returns the class activation maps, which say how the tags share a
    saliency map (`share_saliency`).
    """
    maps = cached_maps(network, cache, sample, "coarse")
    if rival == "walk":
        maps = spread_maps(maps, fine_features(network, cache, sample.id), WALK_POWER, WALK_STEPS, WALK_RADIUS)
    elif rival == "correlation":
        maps = spread_maps(maps, fine_features(network, cache, sample.id))
    return maps / maps.flatten(1).amax(1)[:, None, None].clamp_min(1e-6)


def spread_maps(
    maps: Float[Tensor, "k h w"],
    features: Float[Tensor, "d h w"],
    power: float = 1.0,
    steps: int = 1,
    radius: float = float("inf"),
) -> Float[Tensor, "k h w"]:
    """Return maps after a random walk between cells that look alike: `M <- T M`, `steps` times, with
    `T_ij = a_ij / sum_j a_ij` and `a_ij = max(0, cos(f_i, f_j)) ^ power` for cells at most `radius` cells apart.

    With the defaults this is the pixel correlation module of SEAM (Wang et al., CVPR 2020, section 3.3), on given
    features in place of learned ones. With a power, a radius and many steps it is the random walk of AffinityNet and
    IRN (Ahn and Kwak, CVPR 2018; Ahn et al., CVPR 2019: `T = D^-1 A^(power)`, `M* = T^steps M`), whose affinities are
    learned; here they are the cosine of given features.

    Args:
        maps: values of any scale.
        features: of the same cells, of any length.
        power: at least 0; the larger, the more alike cells must be.
        steps: at least 1.
        radius: in cells, from centre to centre.

    >>> features = torch.tensor([[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]])  # two cells alike, one at right angles
    >>> spread_maps(torch.tensor([[[1.0, 0.0, 0.0]]]), features).flatten().tolist()
    [0.5, 0.5, 0.0]
    """
    k, h, w = maps.shape
    flat = F.normalize(features.flatten(1), dim=0)
    alike = (flat.T @ flat).clamp_min(0) ** power
    if radius < max(h, w):
        places = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).view(-1, 2).float()
        alike = alike * (torch.cdist(places, places) <= radius)
    alike.fill_diagonal_(1.0)  # also a cell without features is like itself
    step, moved = alike / alike.sum(1, keepdim=True), maps.flatten(1).T
    for _ in range(steps):
        moved = step @ moved
    return moved.T.reshape(k, h, w)


def reactivate(network: RcaNetwork, cache: FeatureCache, samples: Sequence[Sample], track: Track = silent) -> None:
    """Replace the network's class activation maps by those of ReCAM (Chen et al., CVPR 2022, section 3.2).

    Every tag of an image is an example: the mean of the features, weighted by the tag's class activation map
    (`f_k = sum(M_k F) / sum(M_k)`), with the tag as its only label. A linear classifier of these examples, fitted to
    convergence with the softmax cross-entropy, takes the place of the tag head: `ReCAM_k = relu(w_k F)`. In the paper
    its loss also trains the backbone, and f_k is divided by the number of cells, so that an object's size counts.

    With fewer than two classes among the tags there is nothing to tell apart, and the network is left as it is.
    """
    examples, labels = [], []
    for sample in track(samples, "ReCAM", len(samples)):
        if sample.tags:
            examples.append(_masked_features(network, cache, sample))
            labels += [class_id - 1 for class_id in sample.tags]
    if len(set(labels)) < 2:
        return
    (head,) = network.coarse_head
    weight = fit_softmax(torch.cat(examples), torch.tensor(labels), head.get_parameter("weight").shape[0])
    with torch.no_grad():
        head.get_parameter("weight").copy_(weight[..., None, None])


def fit_softmax(
    features: Float[Tensor, "n d"], labels: Int[Tensor, "n"], classes: int, penalty: float = PENALTY
) -> Float[Tensor, "c d"]:
    """Return the weights of a linear classifier without intercepts, fitted to convergence (L-BFGS, softmax
    cross-entropy); a class counts by its number of examples.

    >>> weight = fit_softmax(torch.eye(2), torch.tensor([1, 0]), 2)
    >>> (torch.eye(2) @ weight.T).argmax(1).tolist()
    [1, 0]
    """
    scale = features.square().mean(0).sqrt().clamp_min(1e-6) * features.shape[1] ** 0.5
    x, weight = features / scale, torch.zeros(classes, features.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Float[Tensor, ""]:
        optimizer.zero_grad()
        total = F.cross_entropy(x @ weight.T, labels) + penalty * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    found: Tensor = weight.detach() / scale
    return found


@torch.no_grad()
def _masked_features(network: RcaNetwork, cache: FeatureCache, sample: Sample) -> Float[Tensor, "k l"]:
    """Return the mean over scales of what the tag head reads, weighted by the map of each tag."""
    maps, grid = cached_maps(network, cache, sample, "coarse"), network.backbone.grid
    means = []
    for last, _ in cached_inputs(network, cache, sample.id):
        weights = resize_cells(maps[None], last.shape[2:], grid.cornered, grid.shift, grid.shift)[0].flatten(1)
        means.append((weights @ last[0].flatten(1).T) / weights.sum(1, keepdim=True).clamp_min(1e-6))
    mean: Tensor = torch.stack(means).mean(0)
    return mean


def share_saliency(maps: Float[Tensor, "k h w"], salient: Float[Tensor, "h w"]) -> Float[Tensor, "k h w"]:
    """Return the probability of each tag when a saliency map (0..1) is all that is known of background: a single tag
    gets the saliency, several share it in proportion to their maps, in equal parts where all of these are 0.

    >>> maps = torch.tensor([[[3.0, 0.0]], [[1.0, 0.0]]])
    >>> share_saliency(maps, torch.tensor([[0.5, 0.25]])).tolist()
    [[[0.375, 0.125]], [[0.125, 0.125]]]
    """
    total = maps.sum(0)
    shares = torch.where(total > 0, maps / total.clamp_min(1e-12), maps.new_tensor(1 / max(len(maps), 1)))
    return shares * salient
