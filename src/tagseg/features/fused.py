"""The same features faster: on a CPU, convolution, batch norm and activation in one pass over memory."""

import logging
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tagseg.networks.backbones import Backbone

log = logging.getLogger(__name__)

LayerMaps = Callable[[Tensor], Sequence[Tensor]]
"""Maps RGB images in 0..1 to the outputs of layers, as `Backbone.layer_maps` does."""

TRACED, COMPARED = (96, 128), ((160, 112), (97, 131))
"""Sizes in pixels of the image that the backbone is traced with, and of those on which both results are compared; the
nearest sizes that fit the backbone are taken."""

LARGEST_DIFFERENCE = 1e-3
"""Largest difference of a value that is accepted, as a part of the largest value of its map."""


def fuse(backbone: Backbone, layers: Sequence[str]) -> LayerMaps | None:
    """Return a faster function with the results of `backbone.layer_maps(images, layers)`, which threads may call side
    by side (unlike `layer_maps`); None where there is none.

    The backbone is traced, and its convolutions are joined with the batch norms and activations that follow them. A
    trace knows only the path that one image took: where the results differ on images of other sizes, as with vision
    transformers whose positions depend on the size, and on every device but a CPU, there is no such function.

    Args:
        backbone: in evaluation mode; its weights are copied.
        layers: as in `Backbone.layer_maps`.

    Raises:
        ValueError: as `Backbone.layer_maps`.
    """
    if backbone.mean.device.type != "cpu":
        return None
    backbone.layer_maps(_image(backbone, TRACED), layers)  # errors that are the user's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # traces are deprecated in favour of a compiler that users may lack
            traced = torch.jit.trace(LayersModule(backbone, layers).eval(), _image(backbone, TRACED), check_trace=False)
            fused: LayerMaps = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
        for size in COMPARED:
            image = _image(backbone, size)
            for expected, found in zip(backbone.layer_maps(image, layers), fused(image), strict=True):
                difference, largest = (expected - found).abs().max(), expected.abs().max()
                if found.shape != expected.shape or difference > LARGEST_DIFFERENCE * largest.clamp_min(1e-6):
                    return None
    except Exception as error:  # a trace fails in many ways, none of which is the user's fault
        log.info("features: %s is not fused (%s)", backbone.name, str(error).splitlines()[0][:200])
        return None
    return fused


class LayersModule(nn.Module):
    """`Backbone.layer_maps` as a module."""

    def __init__(self, backbone: Backbone, layers: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.layers = backbone, layers

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone.layer_maps(images, self.layers))


def _image(backbone: Backbone, size: tuple[int, int]) -> Tensor:
    height, width = backbone.fitting_size(*size)
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return image.contiguous(memory_format=torch.channels_last)
