"""How well tags are recognised on photographs that were held out: a figure without true masks."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from tagseg.system.records import Count, Record, read_record, write_record

TAGS_HELD_OUT = 0.1
"""Share of the training photographs that are held out; the network that makes the masks learns from all of them."""


class HeldOutTags(Record, frozen=True):
    """held_out.json: tags of held-out photographs by a classifier that did not see these.

    images: photographs held out. Per class, in the order of the classes: tagged: photographs with the tag; found: of
    these, those where the classifier finds it; wrong: photographs without the tag where it finds it all the same.
    """

    images: Count
    tagged: tuple[Count, ...]
    found: tuple[Count, ...]
    wrong: tuple[Count, ...]

    def accuracy(self) -> float | None:
        """Return the share of right answers among the tags that exist or were found; None if there are none."""
        asked = sum(self.tagged) + sum(self.wrong)
        return sum(self.found) / asked if asked else None


def split_held_out(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the places of the photographs to learn from and of those held out, of a number of photographs."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed + 1))
    held = max(round(images * TAGS_HELD_OUT), 1)
    return order[held:], order[:held]


def count_tags(scores: Float[Tensor, "n c"], tags: Float[Tensor, "n c"]) -> HeldOutTags:
    """Count tags that are found (score above 0, probability above a half) and wrong."""
    said, true = scores > 0, tags > 0
    counts = (true, said & true, said & ~true)
    tagged, found, wrong = (tuple(one.sum(0).tolist()) for one in counts)
    return HeldOutTags(len(scores), tagged, found, wrong)


def write_held_out(folder: Path, found: HeldOutTags) -> None:
    """Write held_out.json into a network's folder."""
    write_record(folder / "held_out.json", found)


def read_held_out(folder: Path) -> HeldOutTags | None:
    """Return held_out.json of a network's folder; None if there is none, as of a network trained by gradient steps.

    Raises:
        RunError: when the file is damaged.
    """
    file = folder / "held_out.json"
    return read_record(file, HeldOutTags, "train again with --force") if file.exists() else None
