"""The dense CRF as tensor programs, for GPUs: what lattice.py and meanfield.py do, in PyTorch."""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from tagseg.crf.lattice import SMALLEST, embedding
from tagseg.settings.crf import CrfSettings


class TensorLattice(NamedTuple):
    """Points among the vertices of a permutohedral lattice, d dimensions, e = d + 1 corners a point (see `Lattice`).

    corners and weights as there; neighbours: each vertex's two along each axis, m where there is none.
    """

    corners: Int64[Tensor, "n e"]
    weights: Float32[Tensor, "n e"]
    neighbours: Int64[Tensor, "e 2 m"]


def on_tensors(
    probabilities: Float32[Tensor, "l h w"], image: UInt8[Tensor, "h w 3"], settings: CrfSettings
) -> Float32[Tensor, "l h w"]:
    """Return the refined probabilities of an image's labels: `dense_crf` of tensors."""
    labels, height, width = probabilities.shape
    device = probabilities.device
    logs = probabilities.reshape(labels, -1).T.clamp_min(SMALLEST).log()
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    places = torch.stack([columns.reshape(-1), rows.reshape(-1)], 1).float()
    colours = image.to(device).reshape(-1, 3).float() / settings.bilateral_srgb
    kernels = [
        (places / settings.gaussian_sxy, settings.gaussian_compat),
        (torch.cat([places / settings.bilateral_sxy, colours], 1), settings.bilateral_compat),
    ]
    return mean_field(logs, kernels, settings.steps).T.reshape(labels, height, width)


def mean_field(
    logs: Float32[Tensor, "n l"], kernels: list[tuple[Float32[Tensor, "n _d"], float]], steps: int
) -> Float32[Tensor, "n l"]:
    """Return the labels' probabilities after some steps of mean field inference (see meanfield.py), for kernels given
    by the points' features, in units of standard deviations, and weights.

    Raises:
        ValueError: when the points span too many standard deviations.
    """
    lattices = [(build_lattice(features), weight) for features, weight in kernels]
    ones = torch.ones_like(logs[:, :1])
    norms = [filtered(lattice, ones).rsqrt() for lattice, _ in lattices]
    q = logs.softmax(1)
    for _ in range(steps):
        logits = logs.clone()
        for (lattice, weight), norm in zip(lattices, norms, strict=True):
            logits += weight * norm * filtered(lattice, norm * q)
        q = logits.softmax(1)
    return q


def filtered(lattice: TensorLattice, values: Float32[Tensor, "n l"]) -> Float32[Tensor, "n l"]:
    """Splat the points' values, blur them along every axis by (1/2, 1, 1/2), and slice them."""
    n, e = lattice.corners.shape
    labels, m = values.shape[1], lattice.neighbours.shape[2]
    # One row more than vertices: what a missing neighbour adds, zero.
    rows = values.new_zeros(m + 1, labels)
    shares = (lattice.weights[..., None] * values[:, None]).reshape(n * e, labels)
    rows.index_add_(0, lattice.corners.reshape(-1), shares)
    for before, after in lattice.neighbours:
        rows[:m] += 0.5 * (rows[before] + rows[after])
    sliced: Tensor = (rows[lattice.corners] * lattice.weights[..., None]).sum(1)
    return sliced


def build_lattice(features: Float32[Tensor, "n d"]) -> TensorLattice:
    """Return the lattice of points whose features are in units of the Gaussian's standard deviation.

    Raises:
        ValueError: when the points span too many standard deviations.
    """
    low, high = features.amin(0), features.amax(0)
    scale, strides = (
        torch.from_numpy(part).to(features.device) for part in embedding(torch.stack([low, high]).cpu().numpy())
    )
    keys, weights = find_simplices(features * scale, strides)
    found, corners = torch.unique(keys, return_inverse=True)
    d, m = features.shape[1], len(found)
    steps = (d + 1) * strides - strides.sum()
    wanted = found + torch.stack([-steps, steps], 1)[..., None]
    at = torch.searchsorted(found, wanted).clamp_max(m - 1)
    return TensorLattice(corners, weights, at.where(found[at] == wanted, torch.full_like(at, m)))


def find_simplices(
    scaled: Float32[Tensor, "n d"], strides: Int64[Tensor, "e"]
) -> tuple[Int64[Tensor, "n e"], Float32[Tensor, "n e"]]:
    """Return the keys of the vertices around each point, and its barycentric weights (Adams, Baek and Davis 2010,
    section 3.2; see lattice.py)."""
    n, d = scaled.shape
    e = d + 1
    beyond = torch.nn.functional.pad(scaled.flip(1).cumsum(1).flip(1), (0, 1))
    place = beyond.clone()
    place[:, 1:] -= torch.arange(1, e, device=scaled.device) * scaled
    rounded = (place / e + 0.5).floor()
    rest = place - rounded * e
    rank = (-rest).argsort(dim=1, stable=True).argsort(dim=1)
    # The coordinates must sum to zero: those that were rounded the furthest take a step back.
    rank = rank + rounded.sum(1, keepdim=True).long()
    step = (rank < 0).long() - (rank > d).long()
    rank = rank + step * e
    nearest = (rounded.long() + step) * e
    rest = (rest - step * e) / e
    weights = scaled.new_zeros(n, e + 1)
    weights.scatter_add_(1, d - rank, rest)
    weights.scatter_add_(1, e - rank, -rest)
    weights[:, 0] += 1 + weights[:, e]
    # From one corner to the next every coordinate grows by one, but for one that falls by d.
    falls = torch.empty_like(rank).scatter_(1, d - rank, strides.expand(n, -1))
    moves = (strides.sum() - e * falls[:, :-1]).cumsum(1)
    first = (nearest * strides).sum(1, keepdim=True)
    return torch.cat([first, first + moves], 1), weights[:, :e]
