"""Regional semantic contrast: InfoNCE between a batch's regions and the memory bank (RCA, eqs. 3 to 5)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_CHUNK, GPU_CHUNK = 2_048, 65_536
"""Slots compared at a time: on a CPU as many as stay in its cache."""


def contrast(
    regions: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    slots: Float[Tensor, "e s d"],
    written: Bool[Tensor, "e s"],
    temperature: float,
    limit: int = 0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n"]:
    """Return each region's InfoNCE loss against the bank (RCA, eq. 3).

    The mean over all written slots m+ of the region's own entry of
    `-log(e^{f.m+/t} / (e^{f.m+/t} + sum over all other entries' written slots e^{f.m-/t}))`, all vectors of unit
    length. Zero where the own entry, or every other entry, holds nothing. Of the slots of entries that no region
    belongs to, at most `limit` are drawn (0: all are taken), and their sum is scaled up to all of them. `generator` is
    a CPU generator, so that devices draw alike.

    >>> slots = torch.eye(2)[:, None]  # two entries of one slot each, at right angles
    >>> written = torch.ones(2, 1, dtype=torch.bool)
    >>> losses = contrast(torch.eye(2), torch.tensor([0, 0]), slots, written, temperature=1.0)
    >>> [round(loss, 3) for loss in losses.tolist()]  # -log(e / (e + 1)), -log(1 / (1 + e))
    [0.313, 1.313]
    """
    return _losses(regions, labels[None], slots, written, temperature, limit, generator)[0]


def mixed_contrast(
    regions: Float[Tensor, "n d"],
    labels: Int[Tensor, "n"],
    images: Int[Tensor, "n"],
    slots: Float[Tensor, "e s d"],
    written: Bool[Tensor, "e s"],
    temperature: float,
    alpha: float,
    generator: torch.Generator,
    limit: int = 0,
) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Return the contrast of the regions and of mixed ones, `f = l f_i + (1 - l) f_j` (RCA, eqs. 3 to 5).

    Each region is mixed with a random region of another image; `l ~ Beta(alpha, alpha)`, loss `l L_i + (1 - l) L_j`.
    Regions of a batch of one image have no partner: the second result is empty then. Both come from one pass over the
    bank. `limit` and `generator` as in `contrast`.
    """
    first, second = draw_partners(images, generator)
    share = _beta(alpha, len(first), generator).to(regions)
    mixed = share[:, None] * regions[first] + (1 - share)[:, None] * regions[second]
    pairs = torch.stack([torch.cat([labels, labels[first]]), torch.cat([labels, labels[second]])])
    one, two = _losses(torch.cat([regions, mixed]), pairs, slots, written, temperature, limit, generator)
    n = len(regions)
    return one[:n], share * one[n:] + (1 - share) * two[n:]


def draw_partners(images: Int[Tensor, "n"], generator: torch.Generator) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"]]:
    """Pair regions with a random region of another image: returns the m regions that have one, and their partners."""
    other = images[:, None] != images[None]
    first = other.any(1).nonzero().squeeze(1)
    if len(first) == 0:
        return first, first
    second = torch.multinomial(other[first].float().cpu(), 1, generator=generator).squeeze(1)
    return first, second.to(images.device)


def _beta(alpha: float, n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
    gamma = torch._standard_gamma(torch.full((2, n), alpha), generator=generator)
    return gamma[0] / gamma.sum(0)


def _losses(
    regions: Float[Tensor, "n d"],
    labels: Int[Tensor, "l n"],
    slots: Float[Tensor, "e s d"],
    written: Bool[Tensor, "e s"],
    temperature: float,
    limit: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "l n"]:
    """Return the InfoNCE losses of the regions under each of l labellings.

    The u entries that occur as labels are compared slot by slot, for their slots are positives; all others only enter
    through the logarithm of their sum, so no tensor of size n e s is made.
    """
    regions = regions.to(torch.promote_types(regions.dtype, torch.float32))
    queries = F.normalize(regions, dim=1) / temperature
    entries, own = labels.unique(return_inverse=True)
    usable = written[entries]
    logits = torch.einsum("nd,usd->nus", queries, slots[entries].to(queries.dtype)).masked_fill(~usable, -torch.inf)
    rest = written.index_fill(0, entries, False)
    far = _log_sum_of_rest(queries, slots, rest, limit, generator)
    # Where nothing is written the sum's logarithm is -inf, which has no gradient; e^-10000 is 0 all the same.
    sums = torch.cat([logits.logsumexp(2), far[:, None]], 1).clamp_min(-1e4)
    others = F.one_hot(own, sums.shape[1]).eq(0)
    negatives = sums.masked_fill(~others, -torch.inf).logsumexp(2)
    positives = logits[torch.arange(len(regions), device=own.device), own]
    usable = usable[own]
    # -log(e^p / (e^p + e^N)) = softplus(N - p)
    losses = F.softplus(negatives[..., None] - positives.masked_fill(~usable, 0)).masked_fill(~usable, 0)
    return losses.sum(2) / usable.sum(2).clamp_min(1)


def _log_sum_of_rest(
    queries: Float[Tensor, "n d"],
    slots: Float[Tensor, "e s d"],
    rest: Bool[Tensor, "e s"],
    limit: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "n"]:
    chosen = rest.flatten().nonzero().squeeze(1)
    total = len(chosen)
    if not 0 < limit < total:
        far: Tensor = _LogSum.apply(queries, slots.flatten(0, 1), chosen)
        return far
    drawn = torch.randint(total, (limit,), generator=generator).to(chosen.device)
    estimate: Tensor = _LogSum.apply(queries, slots.flatten(0, 1), chosen[drawn]) + math.log(total / limit)
    return estimate


class _LogSum(torch.autograd.Function):
    """`log sum_j e^{q.k_j}` over the chosen keys, a chunk at a time; -inf without any.

    Its gradient is the keys' mean weighted by the softmax, which the same pass gathers: the backward pass neither keeps
    products nor computes them again.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Float[Tensor, "n d"], keys: Float[Tensor, "m d"], chosen: Int[Tensor, "j"]
    ) -> Float[Tensor, "n"]:
        highest = queries.new_full((len(queries),), -torch.inf)
        total, mean = torch.zeros_like(highest), torch.zeros_like(queries)
        chunk = CPU_CHUNK if keys.device.type == "cpu" else GPU_CHUNK
        for part in chosen.split(chunk) if len(chosen) else ():
            near = keys.index_select(0, part).to(queries.dtype)
            logits = queries @ near.T
            peak = torch.maximum(highest, logits.amax(1))
            powers = logits.sub_(peak[:, None]).exp_()
            faded = (highest - peak).exp()
            total = total * faded + powers.sum(1)
            mean = torch.addmm(mean * faded[:, None], powers, near)
            highest = peak
        ctx.save_for_backward(mean / total.clamp_min(1e-30)[:, None])
        return highest + total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "n"]) -> tuple[Float[Tensor, "n d"], None, None]:
        (mean,) = ctx.saved_tensors
        return gradient[:, None] * mean, None, None
