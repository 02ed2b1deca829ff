"""The memory bank: embeddings of regions from the whole training set, per class."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Bank(nn.Module):
    """Up to `slots` unit-length region embeddings per entry; entry 0 is background, entries 1..C are the classes.

    Only written slots exist: `filled` counts them per entry, so noise is never read. A free slot takes the new
    embedding as it is. A full entry replaces its oldest slot (`fifo`) or blends the new embedding into it (`blend`,
    RCA's rule). All state is in buffers, so `state_dict` saves and restores the bank exactly.

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
        """Write embeddings (any length; normalised here) into the entries of their labels, in order.

        Embeddings without a direction (all zero, or not finite) are skipped.
        """
        entries, capacity, _ = self.slots.shape
        directed = embeddings.any(1) & embeddings.isfinite().all(1)
        embeddings, labels = embeddings[directed], labels[directed]
        mine = F.one_hot(labels, entries)
        order = (mine.cumsum(0) - 1).gather(1, labels[:, None]).squeeze(1)
        count = mine.sum(0)
        # A batch larger than the entry would overwrite its own first embeddings, so only its last ones are written.
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
