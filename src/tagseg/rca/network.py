"""The classification network: backbone -> neck -> coarse map (CAM) -> aggregation -> refined map."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tagseg.networks.backbones import LAST, RANDOM, Backbone, build_backbone, freeze, freeze_batch_norm
from tagseg.rca.aggregation import aggregate, attend, likely_entries, posterior
from tagseg.rca.bank import Bank
from tagseg.rca.frozen import FrozenLayers
from tagseg.rca.kmeans import kmeans
from tagseg.rca.regions import Regions, mine_regions
from tagseg.rca.taught import TaughtEntries, crowding
from tagseg.settings.rca import RcaSettings
from tagseg.settings.train import TrainSettings


@dataclass(frozen=True)
class Maps:
    """The network's outputs for a batch: the features F that the bank stores (those of an earlier layer and of the
    last one, each of unit length), the coarse map P, the scores (means over cells) of P and of the refined map O, the
    attention S of every cell to the prototypes of m entries of the bank, and which m these are (both None without
    aggregation). With a background channel also that channel of both maps.

    The refined map itself (P again without aggregation) is computed on first access, with the weights of
    that moment: learning from tags needs only its scores, which cost far less.
    """

    features: Float[Tensor, "b d h w"]
    coarse: Float[Tensor, "b c h w"]
    coarse_scores: Float[Tensor, "b c"]
    refined_scores: Float[Tensor, "b c"]
    refine: Callable[[], tuple[Float[Tensor, "b c h w"], Float[Tensor, "b h w"] | None]]
    attention: Float[Tensor, "b m k h w"] | None = None
    entries: Int[Tensor, "b m"] | None = None
    coarse_background: Float[Tensor, "b h w"] | None = None

    @property
    def refined(self) -> Float[Tensor, "b c h w"]:
        """Refined map O."""
        return self._refined[0]

    @property
    def refined_background(self) -> Float[Tensor, "b h w"] | None:
        """Background channel of the refined map, if there is one."""
        return self._refined[1]

    @cached_property
    def _refined(self) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b h w"] | None]:
        return self.refine()


class RcaNetwork(nn.Module):
    """Class activation maps from tags, refined by what a memory bank's prototypes know (RCA).

    `background` adds a channel for background to both maps, after the classes' channels (EPS). With `layers` the
    backbone is frozen, and heads and bank read the joined layers."""

    prototypes: Float[Tensor, "e k d"]
    exists: Bool[Tensor, "e k"]
    intercept: Float[Tensor, "c"]

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        train: TrainSettings,
        rca: RcaSettings,
        background: bool = False,
        layers: FrozenLayers | None = None,
    ) -> None:
        super().__init__()
        self.train_settings, self.rca, self.classes, self.background = train, rca, classes, background
        self.backbone = backbone
        self.layers = layers
        self.taught: TaughtEntries | None = None
        if layers is not None:
            channels, self.keys, self.channels = layers.head_channels, layers.channels, layers.channels
        else:
            channels = train.neck or backbone.channels
            self.keys = channels if rca.layer == LAST else backbone.earlier_channels
            self.channels = channels if rca.layer == LAST else backbone.earlier_channels + channels
            neck = nn.Sequential(nn.Conv2d(backbone.channels, channels, 1), nn.ReLU(inplace=True))
            self.neck = neck if train.neck else nn.Identity()
        convs: list[nn.Module] = []
        for _ in range(0 if layers else train.head_convs):
            convs += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
        self.coarse_head = nn.Sequential(*convs, nn.Conv2d(channels, classes + background, 1))
        if rca.aggregation:
            self.refined_head = nn.Conv2d(self.channels + channels, classes + background, 1)
        prototypes = max(rca.prototypes, rca.background_prototypes)
        self.register_buffer("prototypes", torch.zeros(classes + 1, prototypes, self.channels))
        self.register_buffer("exists", torch.zeros(classes + 1, prototypes, dtype=torch.bool))
        if layers is not None:
            # In scores, not in maps: a map's zero must not depend on how frequent its class is.
            self.register_buffer("intercept", torch.zeros(classes))
            backbone.requires_grad_(False)
        else:
            freeze(backbone.model, backbone.model.feature_info, train.freeze_stride)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> "RcaNetwork":
        """Switch to training; frozen batch norms stay in evaluation."""
        super().train(mode)
        if self.train_settings.freeze_batch_norm:
            freeze_batch_norm(self.backbone)
        return self

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Maps:
        """Return the maps of RGB images in 0..1."""
        if self.layers is not None:
            return self.maps(*self.layers(self.backbone, images))
        last, earlier = self.backbone.with_earlier(images)
        last = self.neck(last)
        # In both layers a region is compared with the bank: the last one learns from it, the earlier one is looked up.
        return self.maps(last, last if self.rca.layer == LAST else torch.cat([_unit(earlier), _unit(last)], 1))

    def maps(self, last: Float[Tensor, "b l h w"], features: Float[Tensor, "b d h w"]) -> Maps:
        """Return the maps from the features that the heads read (`last`) and those that the bank stores."""
        activations = self.coarse_head[:-1](last)
        coarse, coarse_background = self._split(self.coarse_head[-1](activations))
        # The mean over cells and the last 1x1 convolution commute: so the gradient of the scores takes one cell per
        # image, not all of them, which with 1,000 classes would be a fifth of the step.
        coarse_scores = self.coarse_head[-1](_mean(activations))[:, : self.classes, 0, 0]
        if self.layers is not None:
            coarse_scores = coarse_scores + self.intercept
        if not self.rca.aggregation:
            maps = coarse, coarse_background
            return Maps(
                features, coarse, coarse_scores, coarse_scores, lambda: maps, coarse_background=coarse_background
            )
        entries = likely_entries(coarse_scores, self.rca.attended)
        prototypes, exists = self.prototypes, self.exists
        if entries.shape[1] < len(prototypes):
            prototypes, exists = prototypes[entries], exists[entries]
        attention = self.attend(features, prototypes, exists)
        refined_scores = self._refine(_mean(last), _mean(attention), prototypes)[0][..., 0, 0]
        refine = partial(self._refine, last, attention, prototypes)
        return Maps(features, coarse, coarse_scores, refined_scores, refine, attention, entries, coarse_background)

    def attend(
        self, features: Float[Tensor, "b d h w"], prototypes: Float[Tensor, "*b m k d"], exists: Bool[Tensor, "*b m k"]
    ) -> Float[Tensor, "b m k h w"]:
        """Return the attention of cells to prototypes, which are found by the earlier layer's part of the features."""
        return attend(features[:, : self.keys], prototypes[..., : self.keys], exists, self.rca.attention_temperature)

    def posterior(
        self, features: Float[Tensor, "b d h w"], image: Int[Tensor, "n"], tag: Int[Tensor, "n"]
    ) -> Float[Tensor, "n h w"]:
        """Return the posteriors of n pairs of an image and one of its tags (see `aggregation.posterior`), from the
        features that the bank stores."""
        prototypes, exists, bonus = self.all_prototypes()
        keys, t = prototypes[..., : self.keys], self.rca.attention_temperature
        if bonus is not None:
            t /= self.rca.taught_sharpness
        nearest = self.rca.posterior == "nearest"
        return posterior(features[:, : self.keys], keys, exists, t, image, tag, nearest, bonus)

    def all_prototypes(self) -> tuple[Float[Tensor, "e k d"], Bool[Tensor, "e k"], Float[Tensor, "e k"] | None]:
        """Return the mined prototypes of every entry, then the taught ones; which exist; and the logarithm of each
        one's weight, None if nothing was taught: `rca.taught_weight` for taught ones, and all of an entry less the more
        it was taught (see `crowding`)."""
        taught = self.taught
        if taught is None or not len(taught):
            return self.prototypes, self.exists, None
        device, entries = self.prototypes.device, len(self.prototypes)
        labels = taught.labels.to(device)
        mine = F.one_hot(labels, entries)
        place = (mine.cumsum(0) - 1).gather(1, labels[:, None]).squeeze(1)
        most = int(place.max()) + 1
        features = self.prototypes.new_zeros(entries, most, self.channels)
        exists = torch.zeros(entries, most, dtype=torch.bool, device=device)
        features[labels, place], exists[labels, place] = taught.features.to(features), True
        bonus = torch.full((entries, most), math.log(self.rca.taught_weight), device=device)
        bonus = torch.cat([torch.zeros_like(self.exists, dtype=bonus.dtype), bonus], 1)
        return (
            torch.cat([self.prototypes, features], 1),
            torch.cat([self.exists, exists], 1),
            bonus - crowding(self.exists.sum(1), labels)[:, None],
        )

    @torch.no_grad()
    def mine(self, maps: Maps, tags: Bool[Tensor, "b c"], bars: Float[Tensor, "c"] | None = None) -> Regions:
        """Return a batch's regions by the settings' rule (see `mine_regions`); `bars`: what each class's probability
        must exceed (None: `rca.confidence`)."""
        rca, shares = self.rca, None
        if rca.region_rule == "posterior":
            image, column = tags.nonzero(as_tuple=True)
            shares = self.posterior(maps.features, image, column + 1)
        thresholds = rca.region_threshold, rca.background, rca.background_threshold
        confidence = rca.confidence if bars is None else bars
        return mine_regions(maps.coarse, tags, rca.region_rule, *thresholds, confidence, shares)

    def _refine(
        self,
        last: Float[Tensor, "b l h w"],
        attention: Float[Tensor, "b m k h w"],
        prototypes: Float[Tensor, "*b m k d"],
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b h w"] | None]:
        context = aggregate(attention, prototypes)
        return self._split(self.refined_head(torch.cat([context, last.to(context.dtype)], 1)))

    def _split(
        self, channels: Float[Tensor, "b m h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b h w"] | None]:
        return channels[:, : self.classes], channels[:, self.classes] if self.background else None

    @torch.no_grad()
    def refresh_prototypes(self, bank: Bank, generator: torch.Generator | None = None) -> None:
        """Recompute the prototypes from the bank (k-means per entry)."""
        own = self.rca.prototypes
        if background := self.rca.background_prototypes:
            few = kmeans(bank.slots[1:], bank.written[1:], own, generator)
            many = kmeans(bank.slots[:1], bank.written[:1], background, generator)
            self.exists.zero_()
            for rows, (prototypes, exists) in ((slice(1, None), few), (slice(1), many)):
                self.prototypes[rows, : prototypes.shape[1]] = prototypes
                self.exists[rows, : exists.shape[1]] = exists
            return
        prototypes, exists = kmeans(bank.slots, bank.written, own, generator)
        self.prototypes.copy_(prototypes)
        self.exists.copy_(exists)

    def new_layers(self) -> list[nn.Module]:
        """Return the layers that do not come with the backbone's weights."""
        return [module for name, module in self.named_children() if name != "backbone"]


def _unit(features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


def _mean(maps: Float[Tensor, "*any h w"]) -> Float[Tensor, "*any 1 1"]:
    # In half precision the sum over many cells would be rounded.
    return maps.mean((-2, -1), keepdim=True, dtype=torch.promote_types(maps.dtype, torch.float32))


def build_network(
    classes: int,
    train: TrainSettings,
    rca: RcaSettings,
    start: bool = True,
    background: bool = False,
    layers: FrozenLayers | None = None,
    shift: float | None = None,
) -> RcaNetwork:
    """Build the network; `start` loads the start weights (not needed when trained ones follow), `background` adds a
    channel for background, `layers` freezes the backbone, `shift` is that of its cells if known (see `build_backbone`).

    Raises:
        ValueError: as `build_backbone`.
    """
    layer = rca.layer if layers is None else LAST
    backbone = build_backbone(train.backbone, train.weights if start else RANDOM, train.stride, layer, shift)
    return RcaNetwork(backbone, classes, train, rca, background, layers)
