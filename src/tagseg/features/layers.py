"""Which layers of a backbone are cached, and how many cells their maps have."""

import logging

import msgspec
import torch

from tagseg.networks.backbones import AUTO, LAST, Backbone, earlier_layer, finer_layers
from tagseg.system.records import Positive

log = logging.getLogger(__name__)


class Layer(msgspec.Struct, frozen=True):
    """A layer of a backbone: its name (`last` is the final map), channels, and image pixels per cell."""

    name: str
    channels: Positive
    stride: Positive

    def cells(self, view: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) in cells of the map of a view of that (height, width) in pixels."""
        return -(-view[0] // self.stride), -(-view[1] // self.stride)

    def kept(self, channels: int) -> int:
        """Return how many channels are kept of this layer if `channels` (0: all) are wanted."""
        return min(self.channels, channels or self.channels)

    def planes(self, channels: int) -> int:
        """Return how many values a cell takes: the kept channels and its length."""
        return self.kept(channels) + 1


def choose_layers(backbone: Backbone, names: tuple[str, ...]) -> tuple[Layer, ...]:
    """Return the layers that the setting features.layers stands for, each once.

    Of the layers that `auto` stands for, those whose maps cannot be used are left out.

    Raises:
        ValueError: when the backbone has no such layer, its output is not a map, or the map's cells do not cover the
            image evenly.
    """
    auto = (LAST, earlier_layer(backbone.model), *finer_layers(backbone.model, backbone.stride))
    wanted = dict.fromkeys(layer for name in names for layer in (auto if name == AUTO else (name,)) if layer)
    found: list[Layer] = []
    for name in wanted:
        try:
            found.append(_layer(backbone, name))
        except ValueError as error:
            if name in {*names, LAST}:
                raise
            log.info("features: a layer is left out: %s", error)
    return tuple(found)


@torch.no_grad()
def _layer(backbone: Backbone, name: str) -> Layer:
    found: list[Layer] = []
    for view in (backbone.fitting_size(224, 160), backbone.fitting_size(96, 224)):
        (map_,) = backbone.layer_maps(torch.zeros(1, 3, *view, device=backbone.mean.device), (name,))
        if not found:
            extra = int(backbone.cornered)
            found.append(Layer(name, map_.shape[1], round((view[0] - extra) / max(map_.shape[2] - extra, 1))))
        if found[0].cells(view) != tuple(map_.shape[2:]):
            raise ValueError(
                f"backbone {backbone.name}: the maps of layer {name!r} must have one cell per {found[0].stride} "
                f"pixels, found {tuple(map_.shape[2:])} cells for {view} pixels; leave the layer out of "
                "--features.layers"
            )
    return found[0]
