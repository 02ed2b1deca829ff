"""The memory bank: embeddings of regions from the whole training set, per class, and their prototypes."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

TRIALS = 8
"""Candidates for every starting centre of k-means: with one, two centres often start in the same cluster and stay."""


class Bank(nn.Module):
    """Up to `slots` unit-length region embeddings per entry; entry 0 is background, 1..C the classes.

    Only written slots exist: `filled` counts them per entry, so nothing is ever taken from noise. A free slot is
    written whole. A full entry replaces its oldest slot (`fifo`) or blends the new embedding into it (`blend`, RCA's
    rule). All state lies in buffers, so `state_dict` saves and restores the bank exactly.
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
    """Cluster each entry's valid points into up to k centres, all entries at once (greedy k-means++, Lloyd's steps).

    Returns:
        The centres, and which of them exist: an entry has as many as it has distinct points, at most k, none without
        points.
    """
    entries, _, d = points.shape
    points = points.masked_fill(~valid[..., None], 0)
    centres = points.new_zeros(entries, k, d)
    exists = torch.zeros(entries, k, dtype=torch.bool, device=points.device)
    rows = torch.arange(entries, device=points.device)
    nearest = valid.to(points.dtype)  # the first centre: any valid point
    for i in range(k):
        exists[:, i] = nearest.sum(1) > 0
        chances = nearest + (~exists[:, i, None]).to(nearest.dtype)
        draws = torch.multinomial(chances, TRIALS, replacement=True, generator=generator)
        candidates = points.gather(1, draws[..., None].expand(-1, -1, d))
        distance = torch.cdist(points, candidates, compute_mode="donot_use_mm_for_euclid_dist").square()
        distance = distance.where(distance > 1e-10, 0) * valid[..., None]
        left = distance if i == 0 else torch.minimum(nearest[..., None], distance)
        best = left.sum(1).argmin(1)
        centres[:, i], nearest = candidates[rows, best], left[rows, :, best]
    for _ in range(iterations):
        squared = torch.cdist(points, centres, compute_mode="use_mm_for_euclid_dist").square()
        owner = squared.masked_fill(~exists[:, None], torch.inf).argmin(-1)
        weights = F.one_hot(owner, k).to(points.dtype) * valid[..., None]
        size = weights.sum(1)
        moved = torch.einsum("esk,esd->ekd", weights, points) / size.clamp_min(1)[..., None]
        # A centre that lost all its points stays where it was.
        moved = torch.where((size > 0)[..., None], moved, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres * exists[..., None], exists
