"""Settings of [rca]."""

from dataclasses import dataclass
from typing import Literal

from tagseg.settings.bounds import check


@dataclass(frozen=True)
class RcaSettings:
    """Regional semantic contrast and aggregation: the memory bank and its two uses."""

    layer: str = "auto"
    """Earlier layer of the backbone by which cells find prototypes; the bank holds it beside the features of the coarse
    map. auto: the block before the last; last: none, the features of the coarse map alone, as in the paper; or the name
    of one of the backbone's modules."""

    contrast: bool = True
    """Contrast regions with the bank while learning."""

    contrast_weight: float = 0.1
    """Weight of the contrast in the loss."""

    temperature: float = 0.1
    """Temperature of the contrast."""

    negatives: int = 32_768
    """Regions of classes that a batch does not show are contrasted in full up to this number; of a larger bank so many
    are drawn every step, and their sum is scaled up (0: always all)."""

    mix: bool = True
    """Also contrast regions mixed with a region of another image."""

    mix_alpha: float = 8.0
    """Mixing share is drawn from Beta(alpha, alpha)."""

    warmup: int = 1
    """Epochs before contrast and aggregation start; the bank is filled meanwhile."""

    region_rule: Literal["posterior", "peak", "softmax-mean"] = "posterior"
    """Cells of a region. peak: above a share of the map's peak; softmax-mean: the paper's, softmax over classes above
    its mean; posterior: as peak until there are prototypes, then the cells that attend to the class by more than
    half (needs pretrained weights; from scratch, peak is better)."""

    region_threshold: float = 0.3
    """Share of the map's peak for the peak rule."""

    background: bool = True
    """Keep background regions in the bank as well: cells where every tagged map is low."""

    background_threshold: float = 0.1
    """A cell is background when every tagged map is below this share of its peak."""

    confidence: float = 0.7
    """A region enters the bank only when its tag's probability is above this."""

    slots: int = 500
    """Regions the bank holds per class."""

    update: Literal["fifo", "blend"] = "fifo"
    """A full bank replaces its oldest region, or blends the new one into it."""

    momentum: float = 0.99
    """Share of the old region kept when blending."""

    aggregation: bool = True
    """Refine the maps with context aggregated from the bank's prototypes, learning and predicting."""

    prototypes: int = 10
    """Prototypes per class (k-means over the class's slots)."""

    attention_temperature: float = 0.1
    """Temperature of the softmax over prototypes."""

    attended: int = 80
    """Classes whose prototypes an image's cells attend to, beside background: where there are more classes, those that
    score highest in the coarse map (0: always all)."""

    def __post_init__(self) -> None:
        for name in ("temperature", "attention_temperature", "mix_alpha"):
            check(getattr(self, name) > 0, f"rca.{name.replace('_', '-')}", getattr(self, name), "more than 0")
        for name in ("region_threshold", "background_threshold", "confidence", "momentum"):
            value = getattr(self, name)
            check(0 <= value < 1, f"rca.{name.replace('_', '-')}", value, "from 0 to below 1")
        for name in ("contrast_weight", "warmup", "negatives", "attended"):
            check(getattr(self, name) >= 0, f"rca.{name.replace('_', '-')}", getattr(self, name), "0 or more")
        check(self.slots >= 1, "rca.slots", self.slots, "at least 1")
        check(1 <= self.prototypes <= self.slots, "rca.prototypes", self.prototypes, "1 to rca.slots")
