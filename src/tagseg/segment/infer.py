"""Class probabilities of images by PyTorch: averaged over scales and the mirrored image."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from tagseg.networks.segmenters import Segmenter
from tagseg.settings.predict import Precision

MAX_PIXELS_WITH_MIRROR = 100_000
"""Pixels up to which a CPU is faster with an image and its mirror image in one call. With twice as many pixels, two
calls are a fifth faster and need less memory."""


def picture_probabilities(
    network: Segmenter,
    pictures: UInt8[np.ndarray, "b h w 3"],
    scales: tuple[float, ...],
    flip: bool,
    precision: Precision = "fp32",
) -> Float32[np.ndarray, "b ids h w"]:
    """Return the class probabilities of pictures, computed on the network's device."""
    found: Float32[np.ndarray, "b ids h w"] = (
        probabilities(network, _sent(network, pictures), scales, flip, precision).cpu().numpy()
    )
    return found


def _sent(network: Segmenter, pictures: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """Return pictures as 0..1 on the network's device; they go there as bytes, a quarter of the size of floats."""
    sent = torch.from_numpy(pictures).to(next(network.parameters()).device)
    return sent.permute(0, 3, 1, 2).float().div_(255)


@torch.inference_mode()
def probabilities(
    network: Segmenter,
    pictures: Float[Tensor, "b 3 h w"],
    scales: tuple[float, ...],
    flip: bool,
    precision: Precision = "fp32",
) -> Float32[Tensor, "b ids h w"]:
    """Return the class probabilities of images (RGB in 0..1), averaged over scales and (`flip`) mirror images."""
    views = [(scale, mirrored) for scale in scales for mirrored in (False, True)[: 1 + flip]]
    total: Tensor | None = None
    for share in _by_view(network, pictures, views, precision):
        total = share if total is None else total.add_(share)
    assert total is not None
    return total.div_(len(views))


@torch.inference_mode()
def view_probabilities(
    network: Segmenter, picture: UInt8[np.ndarray, "h w 3"], views: Sequence[tuple[float, bool]]
) -> Float32[np.ndarray, "v ids h w"]:
    """Return the class probabilities of a picture as each of its views (scale, mirrored) shows it, upright."""
    shares = torch.cat(list(_by_view(network, _sent(network, picture[None]), views, "fp32")))
    found: Float32[np.ndarray, "v ids h w"] = shares.cpu().numpy()
    return found


def _by_view(
    network: Segmenter, pictures: Float[Tensor, "b 3 h w"], views: Sequence[tuple[float, bool]], precision: Precision
) -> Iterator[Float32[Tensor, "b ids h w"]]:
    """Yield the class probabilities by each view, upright and of the pictures' size."""
    h, w = pictures.shape[2:]
    for scale, group in itertools.groupby(views, key=lambda view: view[0]):
        size = network.fitting_size(h * scale, w * scale)
        scaled = resized(pictures, size, antialias=scale < 1)
        for call, given in calls(scaled, [mirrored for _, mirrored in group]):
            with torch.autocast(given.device.type, torch.bfloat16, enabled=precision == "bf16"):
                scores = network(given)
            shares = resized(scores.float(), (h, w)).softmax(1).chunk(len(call))
            for mirrored, share in zip(call, shares, strict=True):
                yield share.flip(-1) if mirrored else share


def calls(
    pictures: Float[Tensor, "b 3 h w"], mirrored: list[bool]
) -> Iterator[tuple[list[bool], Float[Tensor, "n 3 h w"]]]:
    """Yield, for each call of a network, which views of the pictures it gets, as they are (False) or mirrored (True),
    and the views."""
    small = len(pictures) * pictures.shape[2] * pictures.shape[3] <= MAX_PIXELS_WITH_MIRROR
    together = small or pictures.device.type != "cpu"
    for call in [mirrored] if together else [[each] for each in mirrored]:
        yield call, torch.cat([pictures.flip(-1) if each else pictures for each in call])


def resized(
    values: Float[Tensor, "b c h w"], size: tuple[int, int], antialias: bool = False
) -> Float[Tensor, "b c H W"]:
    """Return values resized to (height, width) `size`, bilinear; values of that size are returned as they are."""
    if tuple(values.shape[2:]) == size:
        return values
    return F.interpolate(values, size, mode="bilinear", align_corners=False, antialias=antialias)
