"""Regions: where the coarse map sees a tag (or background), and the mean feature there (RCA, eq. 2)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Regions:
    """n regions of a batch: the image each lies in, its label (0 background, 1..C classes), its cells, and whether its
    tag was predicted with enough confidence to enter the bank."""

    image: Int[Tensor, "n"]
    label: Int[Tensor, "n"]
    cells: Bool[Tensor, "n h w"]
    confident: Bool[Tensor, "n"]


@torch.no_grad()
def mine_regions(
    maps: Float[Tensor, "b c h w"],
    tags: Bool[Tensor, "b c"],
    rule: str = "peak",
    threshold: float = 0.3,
    background: bool = True,
    background_threshold: float = 0.1,
    confidence: float = 0.7,
    shares: Float[Tensor, "b e h w"] | None = None,
) -> Regions:
    """Return a region for every tag of every image, and one of background per image.

    A class region holds the cells above `threshold` of the map's peak (rule `peak`), or those whose softmax over
    classes is above its own mean over cells (rule `softmax-mean`, as in RCA's code). The background region holds the
    cells where every tagged map is below `background_threshold` of its peak. With rule `posterior`, where `shares` (see
    `aggregation.posterior`) are given, a region holds the cells of which it has more than half; an image with a class
    without prototypes falls back on the peak. Empty regions are left out. A class
    region is confident when its tag's probability (sigmoid of the map's mean) exceeds `confidence`; background when
    all tags of its image are.
    """
    maps = maps.float()
    image, column = tags.nonzero(as_tuple=True)
    tagged = maps[image, column]
    positive = tagged.relu()
    share = positive / positive.amax((1, 2), keepdim=True).clamp_min(1e-6)
    if rule == "softmax-mean":
        probability = maps.softmax(1)[image, column]
        cells = probability > probability.mean((1, 2), keepdim=True)
    else:
        cells = share > threshold
    known = torch.zeros(len(maps), dtype=torch.bool, device=maps.device)
    if rule == "posterior" and shares is not None:
        blank = shares[:, 1:].flatten(2).amax(2) == 0
        known = ~(blank & tags).any(1) & (shares[:, 0].flatten(1).amax(1) > 0)
        cells = torch.where(known[image, None, None], shares[image, column + 1] > 0.5, cells)
    confident = tagged.mean((1, 2)).sigmoid() > confidence
    label = column + 1
    if background:
        b, _, h, w = maps.shape
        highest = share.new_zeros(b, h, w).scatter_reduce(0, image[:, None, None].expand_as(share), share, "amax")
        unsure = torch.zeros(b, dtype=torch.bool, device=maps.device).index_put(
            (image[~confident],), maps.new_tensor(True).bool()
        )
        image = torch.cat([image, torch.arange(b, device=maps.device)])
        label = torch.cat([label, label.new_zeros(b)])
        low = highest < background_threshold
        if shares is not None:
            low = torch.where(known[:, None, None], shares[:, 0] > 0.5, low)
        cells = torch.cat([cells, low])
        confident = torch.cat([confident, ~unsure & tags.any(1)])
    present = cells.any(-1).any(-1)
    return Regions(image[present], label[present], cells[present], confident[present])


def pool_regions(features: Float[Tensor, "b d h w"], regions: Regions) -> Float[Tensor, "n d"]:
    """Return each region's mean feature, `sum(M F) / sum(M)` (RCA, eq. 2). Every region must hold a cell."""
    # In half precision the sum over many cells would be rounded.
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    weights = regions.cells.flatten(1).to(features.dtype)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.einsum("ndp,np->nd", features.flatten(2)[regions.image], weights)
