"""K-means for many classes at once: the prototypes of the memory bank."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

TRIALS = 4
"""Candidates for each starting centre: with one candidate, two centres often start in the same cluster and stay."""

STARTS = 2
"""Runs, of which each entry keeps its best."""

VALUES = 2**24
"""Numbers that are clustered together: more would not be faster and would need more memory."""


@torch.no_grad()
def kmeans(
    points: Float[Tensor, "e s d"],
    valid: Bool[Tensor, "e s"],
    k: int,
    generator: torch.Generator | None = None,
    iterations: int = 20,
) -> tuple[Float[Tensor, "e k d"], Bool[Tensor, "e k"]]:
    """Cluster each entry's valid points into up to k centres, batched over entries.

    Greedy k-means++ (Arthur and Vassilvitskii, SODA 2007) finds the starting centres, Lloyd's algorithm improves them.

    Returns:
        The centres, and which of them exist: an entry has as many centres as distinct points, at most k. Two points
        count as the same when the number format cannot tell their distance from 0.

    >>> points = torch.tensor([[[0.0], [1.0], [10.0], [0.0]]])
    >>> centres, exists = kmeans(points, torch.tensor([[True, True, True, False]]), k=2)
    >>> sorted(centres.flatten().tolist()), exists.tolist()
    ([0.5, 10.0], [[True, True]])
    """
    together = max(1, VALUES // max(1, points.shape[1] * points.shape[2]))
    found = [
        _cluster(some, held, k, generator, iterations)
        for some, held in zip(points.split(together), valid.split(together), strict=True)
    ]
    return torch.cat([centres for centres, _ in found]), torch.cat([exists for _, exists in found])


def _cluster(
    points: Float[Tensor, "e s d"],
    valid: Bool[Tensor, "e s"],
    k: int,
    generator: torch.Generator | None,
    iterations: int,
) -> tuple[Float[Tensor, "e k d"], Bool[Tensor, "e k"]]:
    weights = valid.to(points.dtype)
    points = points.masked_fill(~valid[..., None], 0)
    # Distances are computed as |x|^2 + |y|^2 - 2xy, which is exact enough only around the points' own mean.
    middle = points.sum(1, keepdim=True) / weights.sum(1).clamp_min(1)[:, None, None]
    points = (points - middle).masked_fill_(~valid[..., None], 0)
    squares = points.square().sum(2)
    runs = []
    for _ in range(STARTS):
        centres, exists = _start(points, squares, weights, k, generator)
        for _ in range(iterations):
            share = F.one_hot(_distances(points, centres, exists).argmin(2), k) * weights[..., None]
            size = share.sum(1)
            moved = share.mT @ points / size.clamp_min(1)[..., None]
            # A centre that has lost all its points keeps its place.
            moved = torch.where((size > 0)[..., None], moved, centres)
            if torch.equal(moved, centres):
                break
            centres = moved
        inertia = (_distances(points, centres, exists).amin(2) * weights).nan_to_num(0).sum(1)
        runs.append((inertia, centres, exists))
    inertias, tried, existing = (torch.stack(parts) for parts in zip(*runs, strict=True))
    best = inertias.argmin(0)
    rows = torch.arange(len(points), device=points.device)
    centres, exists = tried[best, rows], existing[best, rows]
    return (centres + middle) * exists[..., None], exists


def _distances(
    points: Float[Tensor, "e s d"], centres: Float[Tensor, "e k d"], exists: Bool[Tensor, "e k"]
) -> Float[Tensor, "e s k"]:
    """Return squared distances to the centres minus the point's own square; infinite where no centre exists."""
    less = torch.baddbmm(centres.square().sum(2)[:, None], points, centres.mT, alpha=-2)
    return less.masked_fill(~exists[:, None], torch.inf)


def _start(
    points: Float[Tensor, "e s d"],
    squares: Float[Tensor, "e s"],
    weights: Float[Tensor, "e s"],
    k: int,
    generator: torch.Generator | None,
) -> tuple[Float[Tensor, "e k d"], Bool[Tensor, "e k"]]:
    """Draw the starting centres: each is the best of TRIALS points, drawn with a probability proportional to their
    squared distance from the nearest centre."""
    centres, exists = [], []
    nearest = weights  # the first centre: any valid point
    for i in range(k):
        exists.append(nearest.sum(1) > 0)
        chances = nearest + (~exists[-1][:, None]).to(nearest.dtype)
        draws = torch.multinomial(chances, TRIALS, replacement=True, generator=generator)
        candidates = points.gather(1, draws[..., None].expand(-1, -1, points.shape[2]))
        scale = squares[..., None] + squares.gather(1, draws)[:, None]
        distance = scale - points @ (2 * candidates.mT)
        distance = distance.where(distance > 64 * torch.finfo(points.dtype).eps * scale, 0) * weights[..., None]
        left = distance if i == 0 else torch.minimum(nearest[..., None], distance)
        best = left.sum(1).argmin(1)[:, None, None]
        centres.append(candidates.take_along_dim(best, 1)[:, 0])
        nearest = left.take_along_dim(best, 2)[..., 0]
    return torch.stack(centres, 1), torch.stack(exists, 1)
