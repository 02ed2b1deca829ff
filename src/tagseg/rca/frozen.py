"""RCA on frozen features: the cells of several layers of a backbone that is not trained, projected and joined."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.features.projection import Projection, project
from tagseg.networks.backbones import Backbone
from tagseg.networks.grid import Grid
from tagseg.networks.registration import resize_cells


class FrozenLayers(nn.Module):
    """Joins the maps of several layers to the two inputs of an `RcaNetwork`, in the cells of the first layer.

    Every layer is projected (see `features.projection.project`) as the cache of features stores it. The bank stores
    the projections of all layers, joined and mixed by `mix`, a linear map that the contrast learns and that starts as
    the identity. The heads read the first layer, each cell with its length, which says how much there is to see.
    """

    def __init__(self, names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> None:
        """Start without projections (see `take`).

        Args:
            names: the layers, as in `Backbone.layer_maps`.
            shapes: channels of each layer, and how many of them are kept.
        """
        super().__init__()
        self.names, self.shapes = tuple(names), tuple(shapes)
        for i, (channels, kept) in enumerate(self.shapes):
            self.register_buffer(f"mean{i}", torch.zeros(channels))
            if kept < channels:
                self.register_buffer(f"components{i}", torch.zeros(channels, kept))
            self.register_buffer(f"scales{i}", torch.ones(2))
        self.channels = sum(kept for _, kept in self.shapes)
        self.head_channels = self.shapes[0][1] + 1
        self.register_buffer("mix", torch.eye(self.channels))

    @torch.no_grad()
    def take(self, projections: Sequence[Projection]) -> None:
        """Copy the projections of the layers."""
        for i, one in enumerate(projections):
            self.get_buffer(f"mean{i}").copy_(one.mean)
            self.get_buffer(f"scales{i}").copy_(torch.tensor([one.deviation, one.length]))
            if one.components is not None:
                self.get_buffer(f"components{i}").copy_(one.components)

    def forward(
        self, backbone: Backbone, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b l h w"], Float[Tensor, "b d h w"]]:
        """Return the inputs of the heads and of the bank for RGB images in 0..1."""
        maps = backbone.layer_maps(images, self.names)
        return self.join([project(map_, self._projection(i)) for i, map_ in enumerate(maps)], backbone.grid)

    def join(
        self, maps: Sequence[Float[Tensor, "b _ _ _"]], grid: Grid
    ) -> tuple[Float[Tensor, "b l h w"], Float[Tensor, "b d h w"]]:
        """Return the inputs of the heads and of the bank for projected layers; `grid` is that of the first one. Layers
        with other cells lie regularly."""
        cells = maps[0].shape[2:]
        directions = [
            map_[:, :-1].float()
            if map_.shape[2:] == cells
            else resize_cells(map_[:, :-1].float(), cells, grid.cornered, target_shift=grid.shift)
            for map_ in maps
        ]
        length = maps[0][:, -1:].float()
        joined = torch.cat(directions, 1)
        mix = self.get_buffer("mix")
        if not torch.equal(mix, torch.eye(self.channels, device=mix.device)):
            joined = torch.einsum("kd,bdhw->bkhw", mix, joined)
        return torch.cat([directions[0] * length, length], 1), joined

    def _projection(self, i: int) -> Projection:
        channels, kept = self.shapes[i]
        components = self.get_buffer(f"components{i}") if kept < channels else None
        deviation, length = self.get_buffer(f"scales{i}").tolist()
        return Projection(self.get_buffer(f"mean{i}"), components, deviation, 0.0, length)
