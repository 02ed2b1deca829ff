"""Regional semantic aggregation: every cell gathers context from the prototypes of all classes (RCA, eqs. 6 and 7)."""

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

    >>> features = torch.eye(2).T.reshape(1, 2, 1, 2)  # two cells at right angles
    >>> prototypes, exists = torch.eye(2)[:, None], torch.tensor([[True], [False]])
    >>> attend(features, prototypes, exists, temperature=0.1).flatten().tolist()
    [1.0, 1.0, 0.0, 0.0]
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


def posterior(
    features: Float[Tensor, "b d h w"],
    prototypes: Float[Tensor, "e k d"],
    exists: Bool[Tensor, "e k"],
    temperature: float,
    image: Int[Tensor, "n"],
    tag: Int[Tensor, "n"],
    nearest: bool = False,
    bonus: Float[Tensor, "e k"] | None = None,
) -> Float[Tensor, "n h w"]:
    """Return, for n pairs of an image and one of its tags, the share of each cell's attention that goes to the tag's
    class, among the image's tags and background (entry 0). With `nearest` an entry counts by its nearest prototype
    alone: what its prototypes get does not add up.

    With attention a softmax over prototypes (eq. 6) this is the probability that the cell is of the class, given that
    the image shows nothing but its tags and background. What other classes there are makes no difference. A class
    without prototypes gets 0; without background's, the tags share everything. `bonus` is the logarithm of the weight
    of each prototype's attention (None: all have weight 1).
    """
    entries = torch.cat([tag.new_zeros(len(features)), tag])
    of = torch.cat([torch.arange(len(features), device=image.device), image])
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    queries = F.normalize(features, dim=1)[of].flatten(2) / temperature
    keys = F.normalize(prototypes, dim=2).to(queries.dtype)[entries]
    scores = keys @ queries if bonus is None else keys @ queries + bonus.to(queries.dtype)[entries][..., None]
    scores = scores.masked_fill(~exists[entries][..., None], torch.finfo(queries.dtype).min)
    highest = scores.amax(1)
    lowest = highest.new_full((len(features), highest.shape[1]), torch.finfo(queries.dtype).min)
    peak = lowest.scatter_reduce(0, of[:, None].expand_as(highest), highest.detach(), "amax")
    odds = (scores - peak[of][:, None]).exp()
    weight = (odds.amax(1) if nearest else odds.sum(1)) * exists[entries].any(1, keepdim=True)
    total = torch.zeros_like(peak).index_add(0, of, weight)
    shares = weight / total[of].clamp_min(torch.finfo(weight.dtype).tiny)
    return shares[len(features) :].reshape(-1, *features.shape[2:])


def aggregate(attention: Float[Tensor, "b e k h w"], prototypes: Float[Tensor, "*b e k d"]) -> Float[Tensor, "b d h w"]:
    """Return the context each cell gathers, `F' = S Q` (RCA, eq. 7).

    >>> half = torch.full((1, 2, 1, 1, 1), 0.5)
    >>> aggregate(half, torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]])).flatten().tolist()
    [1.0, 2.0]
    """
    shares = attention.flatten(3).flatten(1, 2).mT
    context: Tensor = shares @ prototypes.flatten(-3, -2)
    return context.mT.reshape(len(attention), -1, *attention.shape[3:])
