"""The classification network: backbone -> neck -> coarse map (CAM) -> aggregation -> refined map."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tagseg.rca.aggregation import aggregate, attend
from tagseg.rca.backbone import LAST, RANDOM, Backbone, build_backbone, freeze, freeze_batch_norm
from tagseg.rca.bank import Bank, kmeans
from tagseg.settings import RcaSettings, TrainSettings


@dataclass(frozen=True)
class Maps:
    """What the network sees in a batch: the features F that the bank holds, the coarse map P, the refined map O (P again
    without aggregation) and the attention S of every cell to the prototypes (None without aggregation). With a
    background channel also that channel of both maps."""

    features: Float[Tensor, "b d h w"]
    coarse: Float[Tensor, "b c h w"]
    refined: Float[Tensor, "b c h w"]
    attention: Float[Tensor, "b e k h w"] | None
    coarse_background: Float[Tensor, "b h w"] | None = None
    refined_background: Float[Tensor, "b h w"] | None = None


class RcaNetwork(nn.Module):
    """Class activation maps from tags, refined by what a memory bank's prototypes know (RCA).

    `background` adds a channel for background to both maps, behind the classes' (EPS)."""

    prototypes: Float[Tensor, "e k d"]
    exists: Bool[Tensor, "e k"]

    def __init__(
        self, backbone: Backbone, classes: int, train: TrainSettings, rca: RcaSettings, background: bool = False
    ) -> None:
        super().__init__()
        self.train_settings, self.rca, self.classes, self.background = train, rca, classes, background
        self.backbone = backbone
        channels = train.neck or backbone.channels
        self.channels = channels if rca.layer == LAST else backbone.earlier_channels
        neck = nn.Sequential(nn.Conv2d(backbone.channels, channels, 1), nn.ReLU(inplace=True))
        self.neck = neck if train.neck else nn.Identity()
        convs: list[nn.Module] = []
        for _ in range(train.head_convs):
            convs += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
        self.coarse_head = nn.Sequential(*convs, nn.Conv2d(channels, classes + background, 1))
        if rca.aggregation:
            self.refined_head = nn.Conv2d(self.channels + channels, classes + background, 1)
        self.register_buffer("prototypes", torch.zeros(classes + 1, rca.prototypes, self.channels))
        self.register_buffer("exists", torch.zeros(classes + 1, rca.prototypes, dtype=torch.bool))
        freeze(backbone.model, backbone.model.feature_info, train.freeze_stride)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> "RcaNetwork":
        """Switch to training; frozen batch norms stay in evaluation."""
        super().train(mode)
        if self.train_settings.freeze_batch_norm:
            freeze_batch_norm(self.backbone)
        return self

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Maps:
        """Return the maps of RGB images in 0..1."""
        last, features = self.backbone.with_earlier(images)
        last = self.neck(last)
        if self.rca.layer == LAST:
            features = last
        coarse, coarse_background = self._split(self.coarse_head(last))
        if not self.rca.aggregation:
            return Maps(features, coarse, coarse, None, coarse_background, coarse_background)
        attention = attend(features, self.prototypes, self.exists, self.rca.attention_temperature)
        context = aggregate(attention, self.prototypes).to(last.dtype)
        refined, refined_background = self._split(self.refined_head(torch.cat([context, last], 1)))
        return Maps(features, coarse, refined, attention, coarse_background, refined_background)

    def _split(self, channels: Float[Tensor, "b m h w"]) -> tuple[Float[Tensor, "b c h w"], Tensor | None]:
        return channels[:, : self.classes], channels[:, self.classes] if self.background else None

    @torch.no_grad()
    def refresh_prototypes(self, bank: Bank, generator: torch.Generator | None = None) -> None:
        """Recompute the prototypes from the bank (k-means per entry)."""
        prototypes, exists = kmeans(bank.slots, bank.written, self.rca.prototypes, generator)
        self.prototypes.copy_(prototypes)
        self.exists.copy_(exists)

    def new_layers(self) -> list[nn.Module]:
        """Return the layers that do not come with the backbone's weights."""
        return [module for name, module in self.named_children() if name != "backbone"]


def build_network(
    classes: int, train: TrainSettings, rca: RcaSettings, start: bool = True, background: bool = False
) -> RcaNetwork:
    """Build the network; `start` loads the start weights (not needed when trained ones follow), `background` adds a
    channel for background.

    Raises:
        ValueError: as `build_backbone`.
    """
    backbone = build_backbone(train.backbone, train.weights if start else RANDOM, train.stride, rca.layer)
    return RcaNetwork(backbone, classes, train, rca, background)
