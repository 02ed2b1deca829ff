"""DeepLab-v2 (Chen, Papandreou, Kokkinos, Murphy and Yuille, TPAMI 2018), the segmentation network of RCA's paper."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.networks.backbones import build_backbone
from tagseg.networks.registration import resize_cells

RATES = (6, 12, 18, 24)
"""Dilation of the four branches of atrous spatial pyramid pooling (ASPP-L, section 4.1.2)."""


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: 3x3 convolutions of several dilations in parallel, whose scores are added.

    `hidden` channels stand between a branch's dilated convolution and its scores: 1024 around VGG16, with dropout
    (fc6, fc7 and fc8 of figure 7); 0 around ResNets, where the dilated convolution gives the scores itself.
    """

    def __init__(self, channels: int, ids: int, hidden: int, rates: tuple[int, ...] = RATES) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_branch(channels, ids, hidden, rate) for rate in rates)

    def forward(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b ids h w"]:
        """Return the sum of the branches' scores."""
        return torch.stack([branch(features) for branch in self.branches]).sum(0)


class DeepLabV2(nn.Module):
    """A backbone whose feature map goes through atrous spatial pyramid pooling; scores are enlarged to image size.

    It takes any backbone of `build_backbone`, vision transformers too: theirs is the map of their patches' tokens.

    Raises:
        ValueError: as `build_backbone` does.
    """

    def __init__(self, encoder: str, ids: int, stride: int | None, weights: str, shift: float | None = None) -> None:
        super().__init__()
        self.encoder = build_backbone(encoder, weights, stride, shift=shift)
        self.head = Pyramid(self.encoder.channels, ids, 1024 if encoder.startswith("vgg") else 0)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b ids H W"]:
        """Return scores of RGB images in 0..1 at their size, which is a `fitting_size` of the encoder."""
        scores = self.head(self.encoder(images))
        return resize_cells(scores, images.shape[2:], self.encoder.cornered, self.encoder.grid.shift)


def _branch(channels: int, ids: int, hidden: int, rate: int) -> nn.Module:
    if not hidden:
        return _normal(nn.Conv2d(channels, ids, 3, padding=rate, dilation=rate))
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 3, padding=rate, dilation=rate),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(hidden, hidden, 1),
        nn.ReLU(),
        nn.Dropout(0.5),
        _normal(nn.Conv2d(hidden, ids, 1)),
    )


def _normal(convolution: nn.Conv2d) -> nn.Conv2d:
    """Small weights and no bias: the branches are added, and all of them begin near zero."""
    nn.init.normal_(convolution.weight, std=0.01)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
