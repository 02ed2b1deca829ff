"""Regional semantic aggregation: every cell gathers context from the prototypes of all classes (RCA, eqs. 6 and 7)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def attend(
    features: Float[Tensor, "b d h w"],
    prototypes: Float[Tensor, "e k d"],
    exists: Bool[Tensor, "e k"],
    temperature: float,
) -> Float[Tensor, "b e k h w"]:
    """Return each cell's attention to the prototypes: `S = softmax_over_prototypes(F Q^T / t)` (RCA, eq. 6).

    Cells and prototypes are compared by cosine. Prototypes that do not exist get nothing; if none does, all is zero.
    """
    e, k, _ = prototypes.shape
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    queries, keys = F.normalize(features, dim=1), F.normalize(prototypes.flatten(0, 1), dim=1)
    scores = torch.einsum("bdhw,md->bmhw", queries, keys) / temperature
    scores = scores.masked_fill(~exists.flatten()[None, :, None, None], torch.finfo(scores.dtype).min)
    shares: Tensor = scores.softmax(1) * exists.any()
    return shares.reshape(len(features), e, k, *features.shape[2:])


def posterior(
    attention: Float[Tensor, "b e k h w"], image: Int[Tensor, "n"], tag: Int[Tensor, "n"]
) -> Float[Tensor, "n h w"]:
    """Return, for n pairs of an image and one of its tags, the share of each cell's attention that goes to the tag's
    class, among the image's tags and background.

    With attention a softmax over prototypes this is the probability that the cell is of the class, given that the image
    shows nothing but its tags and background. 0 where none of them has a prototype.
    """
    entries = attention.sum(2)
    own = entries[image, tag]
    known = entries[:, 0].index_add(0, image, own)
    return own / known[image].clamp_min(torch.finfo(entries.dtype).tiny)


def aggregate(attention: Float[Tensor, "b e k h w"], prototypes: Float[Tensor, "e k d"]) -> Float[Tensor, "b d h w"]:
    """Return the context each cell gathers, `F' = S Q` (RCA, eq. 7)."""
    return torch.einsum("bekhw,ekd->bdhw", attention, prototypes)
