"""Settings of section [rca]: regional semantic contrast and aggregation."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from tagseg.settings.bounds import check_fields


@dataclass(frozen=True)
class RcaSettings:
    """Regional semantic contrast and aggregation: the memory bank and its two uses."""

    layer: str = "auto"
    """Earlier backbone layer whose features match cells to prototypes; the bank stores them together with those of the
    coarse map. auto: the block before the last; last: no earlier layer, only the features of the coarse map, as in the
    paper; or the name of a module of the backbone."""

    contrast: bool = True
    """Train with the contrastive loss between regions and the bank."""

    contrast_weight: Annotated[float, Ge(0), Le(10_000)] = 0.1
    """Weight of the contrastive loss."""

    temperature: Annotated[float, Ge(0.0001), Le(10_000)] = 0.1
    """Temperature of the contrastive loss."""

    negatives: Annotated[int, Ge(0)] = 32_768
    """Most regions to contrast with among the classes that are not in the batch. If the bank holds more, this many are
    drawn at random in each step and their sum is scaled up (0: always use all)."""

    mix: bool = True
    """Also contrast mixtures of two regions from different images."""

    mix_alpha: Annotated[float, Ge(0.0001), Le(10_000)] = 8.0
    """The mixing share is drawn from Beta(alpha, alpha)."""

    warmup: Annotated[int, Ge(0)] = 1
    """Epochs before contrast and aggregation start; the bank fills up meanwhile."""

    region_rule: Literal["posterior", "peak", "softmax-mean"] = "posterior"
    """Which cells form a class's region. peak: those above a share of the map's peak; softmax-mean: the paper's rule,
    those whose softmax over classes exceeds its mean; posterior: as peak until prototypes exist, then those whose
    attention to the class exceeds one half (for pretrained weights; peak works better from scratch)."""

    region_threshold: Annotated[float, Ge(0), Lt(1)] = 0.3
    """Share of the map's peak for the rule peak."""

    background: bool = True
    """Also store background regions in the bank: cells where the map of every tag is low."""

    background_threshold: Annotated[float, Ge(0), Lt(1)] = 0.1
    """A cell is background where the map of every tag is below this share of the map's peak."""

    confidence: Annotated[float, Ge(0), Lt(1)] = 0.7
    """A region enters the bank if the predicted probability of its tag exceeds this (see rca.gate)."""

    gate: Literal["absolute", "relative"] = "absolute"
    """Which other regions enter the bank. absolute: none, as in the paper; relative: the more probable half of every
    class's, so that a class which the network seldom sees has regions too."""

    slots: Annotated[int, Ge(1), Le(100_000)] = 500
    """Regions that the bank holds per class."""

    update: Literal["fifo", "blend"] = "fifo"
    """What a full bank does with a new region. fifo: replace the oldest region; blend: average the new region into the
    oldest."""

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.99
    """Weight of the stored region when blending."""

    aggregation: bool = True
    """Refine the maps with context from the bank's prototypes, in training and in prediction."""

    prototypes: Annotated[int, Ge(1)] = 10
    """Prototypes per class, found by k-means among the class's regions; at most rca.slots."""

    background_prototypes: Annotated[int, Ge(0), Le(100_000)] = 0
    """Prototypes of background, which is more varied than any class (0: as many as rca.prototypes)."""

    posterior: Literal["sum", "nearest"] = "sum"
    """How much of a cell's attention an entry of the bank gets in the posterior. sum: that of all its prototypes, as in
    the paper; nearest: that of its nearest prototype, which is fair between entries of different size."""

    rounds: Annotated[int, Ge(1)] = 3
    """With train.method = frozen: how often the bank is filled. Regions of the first round are found in the class
    activation maps, those of later rounds by the bank of the round before."""

    attention_temperature: Annotated[float, Ge(0.0001), Le(10_000)] = 0.1
    """Temperature of the softmax over prototypes."""

    taught_weight: Annotated[float, Gt(0), Le(10_000)] = 1.0
    """Weight of an entry of the bank that a person taught (`tagseg teach`), relative to one that was mined: how many
    times the attention it gets at the same similarity."""

    taught_sharpness: Annotated[float, Gt(0), Le(10_000)] = 3.0
    """How many times lower the temperature of the posteriors is as soon as anything was taught. The dense CRF gives
    whole objects away where they are only a little likelier than background."""

    attended: Annotated[int, Ge(0)] = 80
    """Most classes whose prototypes the cells of an image attend to, besides background. With more classes, those with
    the highest scores in the coarse map are used (0: always use all)."""

    def __post_init__(self) -> None:
        check_fields(self, "setting rca.")
        if self.prototypes > self.slots:
            raise ValueError(f"setting rca.prototypes must be at most rca.slots ({self.slots}), got {self.prototypes}")
