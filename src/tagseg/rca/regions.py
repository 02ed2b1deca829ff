"""Regions: where the coarse map sees a tag (or background), and the mean feature there (RCA, eq. 2)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Regions:
    """n regions of a batch: the image of each, its label (0 background, 1..C classes), its cells, and whether its
    tag was predicted with enough confidence to enter the bank."""

    image: Int[Tensor, "n"]
    label: Int[Tensor, "n"]
    cells: Bool[Tensor, "n h w"]
    confident: Bool[Tensor, "n"]


MEDIAN_STEP = 0.02
"""How far a class's running median moves with each of its regions: half of it up or down. The n-th region moves it by
1 / (2 n) if that is more."""


class Gate(nn.Module):
    """Says which regions enter the bank: those of tags whose probability is above `confidence`, and if `relative` also
    those of the more probable half of their class's regions.

    A tag is known to be in its image, so its region exists even if the network does not see it yet. The median of a
    class's probabilities is estimated as training goes on, by steps that start at `confidence` and get smaller.

    >>> gate = Gate(classes=2, confidence=0.7, relative=True)
    >>> for _ in range(100):
    ...     gate.watch(torch.tensor([[0.9, 0.2]]), torch.tensor([[True, True]]))
    >>> [round(bar, 2) for bar in gate.bars().tolist()]
    [0.7, 0.2]
    """

    medians: Float[Tensor, "c"]
    seen: Int[Tensor, "c"]

    def __init__(self, classes: int, confidence: float, relative: bool) -> None:
        super().__init__()
        self.confidence, self.relative = confidence, relative
        self.register_buffer("medians", torch.full((classes,), confidence))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.long))

    def bars(self) -> Float[Tensor, "c"]:
        """Return the probability that a class's tag must exceed."""
        return self.medians.clamp_max(self.confidence)

    @torch.no_grad()
    def watch(self, probabilities: Float[Tensor, "b c"], tags: Bool[Tensor, "b c"]) -> None:
        """Take the probabilities of the tags of a batch into account."""
        if self.relative:
            self.seen.add_(tags.sum(0))
            steps = (1 / self.seen.clamp_min(1)).clamp_min(MEDIAN_STEP)
            above = torch.where(probabilities > self.medians, 0.5, -0.5).where(tags, 0.0).sum(0)
            self.medians.add_(steps * above).clamp_(0, 1)


@torch.no_grad()
def mine_regions(
    maps: Float[Tensor, "b c h w"],
    tags: Bool[Tensor, "b c"],
    rule: str = "peak",
    threshold: float = 0.3,
    background: bool = True,
    background_threshold: float = 0.1,
    confidence: float | Float[Tensor, "c"] = 0.7,
    shares: Float[Tensor, "m h w"] | None = None,
) -> Regions:
    """Return a region for every tag of every image, and one of background per image.

    A class region holds the cells above `threshold` of the map's peak (rule `peak`), or those whose softmax over
    classes is above its own mean over cells (rule `softmax-mean`, as in RCA's code). The background region holds the
    cells where every tagged map is below `background_threshold` of its peak. Rule `posterior` is `peak` until `shares`
    are given: the posteriors of all pairs of an image and a tag, in the order of `tags.nonzero()` (see
    `aggregation.posterior`). A class region then holds the cells of which its class has more than half, the background
    region those that all classes together have less than half of. Empty regions are left out. A class region is
    confident when its tag's probability (sigmoid of the map's mean) exceeds `confidence`, one for all classes or one
    for each (see `Gate`); background when all tags of its image are.
    """
    maps = maps.float()
    b, _, h, w = maps.shape
    image, column = tags.nonzero(as_tuple=True)
    tagged = maps[image, column]
    positive = tagged.relu()
    share = positive / positive.amax((1, 2), keepdim=True).clamp_min(1e-6)
    if rule == "softmax-mean":
        probability = maps.softmax(1)[image, column]
        cells = probability > probability.mean((1, 2), keepdim=True)
    else:
        cells = share > threshold
    highest = share.new_zeros(b, h, w).scatter_reduce(0, image[:, None, None].expand_as(share), share, "amax")
    low = highest < background_threshold
    if rule == "posterior" and shares is not None:
        cells, low = _halves(shares, image, cells, low)
    bar = confidence[column] if isinstance(confidence, Tensor) else confidence
    confident = tagged.mean((1, 2)).sigmoid() > bar
    label = column + 1
    if background:
        unsure = torch.zeros(b, dtype=torch.bool, device=maps.device).index_put(
            (image[~confident],), maps.new_tensor(True).bool()
        )
        image = torch.cat([image, torch.arange(b, device=maps.device)])
        label = torch.cat([label, label.new_zeros(b)])
        cells = torch.cat([cells, low])
        confident = torch.cat([confident, ~unsure & tags.any(1)])
    present = cells.any(-1).any(-1)
    return Regions(image[present], label[present], cells[present], confident[present])


def _halves(
    shares: Float[Tensor, "m h w"], image: Int[Tensor, "m"], cells: Bool[Tensor, "m h w"], low: Bool[Tensor, "b h w"]
) -> tuple[Bool[Tensor, "m h w"], Bool[Tensor, "b h w"]]:
    """Return the cells above one half, and each image's below one half of all classes together; `cells` and `low` stay
    in images with a class without a posterior (no prototype yet), or whose classes have everything (no background's).
    """
    together = torch.zeros_like(low, dtype=shares.dtype).index_add(0, image, shares)
    unknown = shares.flatten(1).amax(1) == 0
    missing = torch.zeros(len(low), device=low.device).index_add(0, image, unknown.float())
    known = (missing == 0) & (together.flatten(1).amin(1) < 1)
    return (
        torch.where(known[image, None, None], shares > 0.5, cells),
        torch.where(known[:, None, None], together < 0.5, low),
    )


def pool_regions(features: Float[Tensor, "b d h w"], regions: Regions) -> Float[Tensor, "n d"]:
    """Return each region's mean feature, `sum(M F) / sum(M)` (RCA, eq. 2). Every region must hold a cell.

    >>> maps = torch.tensor([[[[4.0, 2.0, 0.0]]]])  # one class, a row of three cells
    >>> regions = mine_regions(maps, torch.tensor([[True]]), threshold=0.3)
    >>> regions.label.tolist(), regions.cells.flatten().tolist()  # the class, and background
    ([1, 0], [True, True, False, False, False, True])
    >>> pool_regions(maps, regions).tolist()
    [[3.0], [0.0]]
    """
    # In half precision the sum over many cells would be rounded.
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    weights = regions.cells.flatten(1).to(features.dtype)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.einsum("ndp,np->nd", features.flatten(2)[regions.image], weights)
