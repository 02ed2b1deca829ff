"""Regional semantic aggregation: every cell gathers context from the prototypes of all classes (RCA, eqs. 6 and 7)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@torch.no_grad()
def likely_entries(scores: Float[Tensor, "b c"], limit: int) -> Int[Tensor, "b m"]:
    """Return the entries of the bank whose prototypes an image's cells attend to, in ascending order.

    Background (0) and the `limit` classes with the highest scores; every entry where there are no more classes than
    that, or `limit` is 0. Each image's entries depend on that image alone.
    """
    b, c = scores.shape
    if not 0 < limit < c:
        return torch.arange(c + 1, device=scores.device).expand(b, -1)
    return F.pad(scores.topk(limit).indices.sort().values + 1, (1, 0))


def attend(
    features: Float[Tensor, "b d h w"],
    prototypes: Float[Tensor, "*b e k d"],
    exists: Bool[Tensor, "*b e k"],
    temperature: float,
) -> Float[Tensor, "b e k h w"]:
    """Return each cell's attention to the prototypes: `S = softmax_over_prototypes(F Q^T / t)` (RCA, eq. 6).

    Prototypes are the same for all images, or each image's own. Cells and prototypes are compared by cosine.
    Prototypes that do not exist get nothing; if none does, all is zero.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    # Cells before channels, as channels-last features lie in memory: the softmax then runs over neighbours.
    queries = F.normalize(features.flatten(2).mT, dim=2) / temperature
    keys = F.normalize(prototypes.flatten(-3, -2), dim=-1)
    exists = exists.flatten(-2)[..., None, :]
    scores = (queries @ keys.mT).to(features.dtype)
    scores = scores.masked_fill(~exists, torch.finfo(scores.dtype).min)
    shares: Tensor = scores.softmax(-1) * exists.any(-1, keepdim=True)
    e, k, h, w = *prototypes.shape[-3:-1], *features.shape[2:]
    return shares.mT.reshape(-1, e, k, h, w)


def posterior(attention: Float[Tensor, "b e k h w"], ids: Sequence[int]) -> Float[Tensor, "b m h w"]:
    """Return the share of each cell's attention that goes to each of the class ids `ids`, among these and background.

    With attention a softmax over prototypes this is the probability that the cell is of the class, given that the image
    shows nothing but the classes `ids` and background. 0 where none of them has a prototype.
    """
    entries = attention[:, [0, *ids]].sum(2)
    return entries[:, 1:] / entries.sum(1, keepdim=True).clamp_min(torch.finfo(entries.dtype).tiny)


def aggregate(attention: Float[Tensor, "b e k h w"], prototypes: Float[Tensor, "*b e k d"]) -> Float[Tensor, "b d h w"]:
    """Return the context each cell gathers, `F' = S Q` (RCA, eq. 7)."""
    shares = attention.flatten(3).flatten(1, 2).mT
    context: Tensor = shares @ prototypes.flatten(-3, -2)
    return context.mT.reshape(len(attention), -1, *attention.shape[3:])
