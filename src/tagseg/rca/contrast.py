"""Regional semantic contrast: InfoNCE between a batch's regions and the memory bank (RCA, eqs. 3 to 5)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def contrast(
    regions: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    slots: Float[Tensor, "e s d"],
    written: Bool[Tensor, "e s"],
    temperature: float,
) -> Float[Tensor, "n"]:
    """Return each region's InfoNCE loss against the bank (RCA, eq. 3).

    The mean over all written slots m+ of the region's own entry of
    `-log(e^{f.m+/t} / (e^{f.m+/t} + sum over all other entries' written slots e^{f.m-/t}))`, all vectors of unit
    length. Zero where the own entry, or every other entry, holds nothing.
    """
    regions = regions.to(torch.promote_types(regions.dtype, torch.float32))
    logits = torch.einsum("nd,esd->nes", F.normalize(regions, dim=1), slots) / temperature
    own = F.one_hot(labels, slots.shape[0]).bool()[..., None]
    negatives = logits.masked_fill(own | ~written, -torch.inf).flatten(1).logsumexp(1)
    positives = logits[torch.arange(len(labels), device=labels.device), labels]
    usable = written[labels]
    # -log(e^p / (e^p + e^N)) = softplus(N - p); N = -inf (no negatives) gives 0.
    losses = F.softplus(negatives[:, None].clamp_min(-1e4) - positives).masked_fill(~usable, 0)
    return losses.sum(1) / usable.sum(1).clamp_min(1)


def draw_partners(images: Int[Tensor, "n"], generator: torch.Generator) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"]]:
    """Pair regions with a random region of another image: returns the m regions that have one, and their partners."""
    other = images[:, None] != images[None]
    first = other.any(1).nonzero().squeeze(1)
    if len(first) == 0:
        return first, first
    second = torch.multinomial(other[first].float().cpu(), 1, generator=generator).squeeze(1)
    return first, second.to(images.device)


def mixed_contrast(
    regions: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    images: Int[Tensor, "n"],
    slots: Float[Tensor, "e s d"],
    written: Bool[Tensor, "e s"],
    temperature: float,
    alpha: float,
    generator: torch.Generator,
) -> Float[Tensor, "m"]:
    """Return the contrast of mixed regions, `f = l f_i + (1 - l) f_j`, loss `l L_i + (1 - l) L_j` (RCA, eqs. 4 and 5).

    Each region is mixed with a random region of another image; `l ~ Beta(alpha, alpha)`. Regions of a batch of one
    image have no partner: the result is empty then. `generator` is a CPU generator, so that devices draw alike.
    """
    first, second = draw_partners(images, generator)
    share = _beta(alpha, len(first), generator).to(regions)
    mixed = share[:, None] * regions[first] + (1 - share)[:, None] * regions[second]
    one = contrast(mixed, labels[first], slots, written, temperature)
    two = contrast(mixed, labels[second], slots, written, temperature)
    return share * one + (1 - share) * two


def _beta(alpha: float, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
    gamma = torch._standard_gamma(torch.full((2, n), alpha), generator=generator)
    return gamma[0] / gamma.sum(0)
