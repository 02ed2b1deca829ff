"""Explicit pseudo-pixel supervision: saliency maps teach where classes end and background begins (EPS, CVPR 2021)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

FOREGROUND_SHARE = 0.5
"""lambda: what the foreground map contributes to the estimated saliency; the background map contributes the rest."""

SALIENT_OVERLAP = 0.4
"""tau: a class joins the foreground where more than this share of its map falls on salient cells."""


def saliency_estimate(
    classes: Float[Tensor, "b c h w"],
    background: Float[Tensor, "b h w"],
    saliency: Float[Tensor, "b h w"],
    tags: Bool[Tensor, "b c"],
) -> Float[Tensor, "b h w"]:
    """Return the saliency that the maps stand for, `lambda F_fg + (1 - lambda)(1 - F_bg)` (EPS, section 3.2).

    Maps `M` are the softmax over all classes and background, so that their sum stays within 0..1. `F_fg` is the sum of
    the tagged classes' maps that overlap the saliency: more than tau of the cells with M > 0.5 have a saliency above
    0.5. `F_bg` is the sum of the background's map and of the other tagged classes'. A map that exceeds 0.5 nowhere has
    no overlap that could be measured: its class joins the foreground, or untrained maps would be pushed off the
    salient object. No gradient passes through the choice.
    """
    maps = torch.cat([classes, background[:, None]], 1)
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).softmax(1)
    shown, rest = maps[:, :-1], maps[:, -1]
    with torch.no_grad():
        inside = shown > 0.5
        salient = (inside & (saliency > 0.5)[:, None]).sum((2, 3))
        cells = inside.sum((2, 3))
        foreground = tags & ((salient > SALIENT_OVERLAP * cells) | (cells == 0))
    front = torch.einsum("bchw,bc->bhw", shown, foreground.to(shown.dtype))
    back = torch.einsum("bchw,bc->bhw", shown, (tags & ~foreground).to(shown.dtype)) + rest
    return FOREGROUND_SHARE * front + (1 - FOREGROUND_SHARE) * (1 - back)


def saliency_loss(
    classes: Float[Tensor, "b c h w"],
    background: Float[Tensor, "b h w"],
    saliency: Float[Tensor, "b h w"],
    tags: Bool[Tensor, "b c"],
) -> Float[Tensor, ""]:
    """Return the mean square over cells between saliency (0..1) and what the maps estimate of it (EPS, section 3.2)."""
    return F.mse_loss(saliency_estimate(classes, background, saliency, tags), saliency)
