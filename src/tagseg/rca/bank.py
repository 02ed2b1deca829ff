"""The memory bank: embeddings of regions from the whole training set, per class, and their prototypes."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

TRIALS, STARTS = 4, 2
"""Candidates for every starting centre of k-means (with one, two centres often start in the same cluster and stay), and
runs of which each entry keeps its best."""

VALUES = 2**24
"""Numbers clustered together: more would not be faster, only need more memory."""


class Bank(nn.Module):
    """Up to `slots` unit-length region embeddings per entry; entry 0 is background, 1..C the classes.

    Only written slots exist: `filled` counts them per entry, so nothing is ever taken from noise. A free slot is
    written whole. A full entry replaces its oldest slot (`fifo`) or blends the new embedding into it (`blend`, RCA's
    rule). All state lies in buffers, so `state_dict` saves and restores the bank exactly.

    >>> bank = Bank(entries=3, slots=2, channels=4)
    >>> bank.write(torch.eye(4)[:3], torch.tensor([1, 1, 2]))
    >>> bank.filled.tolist(), bank.written.tolist()
    ([0, 2, 1], [[False, False], [True, True], [True, False]])
    """

    slots: Float[Tensor, "e s d"]
    filled: Int[Tensor, "e"]
    cursor: Int[Tensor, "e"]

    def __init__(self, entries: int, slots: int, channels: int, update: str = "fifo", momentum: float = 0.99) -> None:
        super().__init__()
        self.update = update
        self.momentum = momentum
        self.register_buffer("slots", torch.zeros(entries, slots, channels))
        self.register_buffer("filled", torch.zeros(entries, dtype=torch.long))
        self.register_buffer("cursor", torch.zeros(entries, dtype=torch.long))

    @property
    def written(self) -> Bool[Tensor, "e s"]:
        """Which slots hold an embedding."""
        return torch.arange(self.slots.shape[1], device=self.slots.device) < self.filled[:, None]

    @torch.no_grad()
    def write(self, embeddings: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> None:
        """Write embeddings (any length, normalised here) into their labels' entries, in order; no loop over regions.

        Embeddings without a direction (all zero, or not finite) are left out.
        """
        entries, capacity, _ = self.slots.shape
        directed = embeddings.any(1) & embeddings.isfinite().all(1)
        embeddings, labels = embeddings[directed], labels[directed]
        mine = F.one_hot(labels, entries)
        order = (mine.cumsum(0) - 1).gather(1, labels[:, None]).squeeze(1)
        count = mine.sum(0)
        # A batch larger than the entry: the first ones would be overwritten at once, so only the last are written.
        keep = order >= count[labels] - capacity
        position = (self.cursor[labels] + order)[keep] % capacity
        label = labels[keep]
        new = F.normalize(embeddings[keep].to(self.slots.dtype), dim=1)
        if self.update == "blend":
            old = self.slots[label, position]
            blended = F.normalize(self.momentum * old + (1 - self.momentum) * new, dim=1)
            new = torch.where(self.written[label, position][:, None], blended, new)
        self.slots[label, position] = new
        self.filled.copy_((self.filled + count).clamp_max(capacity))
        self.cursor.copy_((self.cursor + count) % capacity)


@torch.no_grad()
def kmeans(
    points: Float[Tensor, "e s d"],
    valid: Bool[Tensor, "e s"],
    k: int,
    generator: torch.Generator | None = None,
    iterations: int = 20,
) -> tuple[Float[Tensor, "e k d"], Bool[Tensor, "e k"]]:
    """Cluster each entry's valid points into up to k centres, batched over entries (greedy k-means++, Lloyd's steps).

    Returns:
        The centres, and which of them exist: an entry has as many as it has distinct points, at most k, none without
        points. Points of one entry count as the same where the number format cannot tell their distance from 0.

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
    # Distances come from products, |x|^2 + |y|^2 - 2xy, which are exact enough around the points' own middle only.
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
            # A centre that lost all its points stays where it was.
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
    """Return squared distances to the centres, each less its point's own square; infinite where no centre exists."""
    less = torch.baddbmm(centres.square().sum(2)[:, None], points, centres.mT, alpha=-2)
    return less.masked_fill(~exists[:, None], torch.inf)


def _start(
    points: Float[Tensor, "e s d"],
    squares: Float[Tensor, "e s"],
    weights: Float[Tensor, "e s"],
    k: int,
    generator: torch.Generator | None,
) -> tuple[Float[Tensor, "e k d"], Bool[Tensor, "e k"]]:
    """Draw the first centres: each the best of TRIALS points drawn by their squared distance to the nearest centre."""
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
