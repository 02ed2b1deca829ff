"""The map that counts for a tag: coarse, refined, the bank's posterior, or against EPS's background channel."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tagseg.rca.network import Maps, RcaNetwork
from tagseg.settings.settings import MapKind


def tag_maps(network: RcaNetwork, maps: Maps, tags: tuple[int, ...], kind: MapKind) -> Float[Tensor, "b k h w"]:
    """Return the maps of one kind of the same tags in every image, none below 0 (see `pair_maps`)."""
    b, device = len(maps.coarse), maps.coarse.device
    image = torch.arange(b, device=device).repeat_interleave(len(tags))
    tag = torch.tensor(tags, dtype=torch.long, device=device).repeat(b)
    return pair_maps(network, maps, image, tag, kind).reshape(b, len(tags), *maps.coarse.shape[2:])


def pair_maps(
    network: RcaNetwork, maps: Maps, image: Int[Tensor, "n"], tag: Int[Tensor, "n"], kind: MapKind
) -> Float[Tensor, "n h w"]:
    """Return the maps of n pairs of an image and one of its tags, all tags of an image given; none below 0.

    The kinds are those of `LocaliseSettings.kind`. A class the bank holds nothing of has no posterior: its refined map
    stands in. With a background channel, coarse and refined maps are probabilities (see `tag_posterior`).
    """
    held = has_posterior(network, tag)
    if kind == "posterior" and held.all():
        return network.posterior(maps.features, image, tag)
    if kind == "coarse":
        classes, background = maps.coarse, maps.coarse_background
    else:
        classes, background = maps.refined, maps.refined_background
    own = classes[image, tag - 1].relu() if background is None else tag_posterior(classes, background, image, tag)
    if kind != "posterior":
        return own
    return torch.where(held[:, None, None], network.posterior(maps.features, image, tag), own)


def has_posterior(network: RcaNetwork, tag: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Tell for n class ids whether the bank gave prototypes to both the class and background."""
    held = network.all_prototypes()[1].any(1)
    return held[tag] & held[0]


def tag_posterior(
    classes: Float[Tensor, "b c h w"],
    background: Float[Tensor, "b h w"],
    image: Int[Tensor, "n"],
    tag: Int[Tensor, "n"],
) -> Float[Tensor, "n h w"]:
    """Return the probability of every pair's class in its image's cells: the softmax over the image's tags and
    background.

    That of EPS's loss goes over all classes (`saliency_estimate`); here it is known which ones the image shows.
    """
    tagged = torch.zeros(classes.shape[:2], dtype=torch.bool, device=classes.device)
    tagged[image, tag - 1] = True
    known = classes.float().masked_fill(~tagged[..., None, None], -torch.inf)
    return torch.cat([known, background.float()[:, None]], 1).softmax(1)[image, tag - 1]
