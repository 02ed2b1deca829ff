"""Settings of [masks]."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from tagseg.settings.bounds import check


@dataclass(frozen=True)
class MaskSettings:
    """From maps to masks."""

    background: Literal["auto", "rest", "otsu", "threshold", "power"] = "auto"
    """Background rule; none needs true masks. rest: background's probability is what those of the tags leave over
    (posterior maps); otsu: the cut that splits each map's own histogram best; threshold: a constant cut; power: the
    background's score is (1 - highest map) ^ power. auto: rest for posterior maps, and others' probabilities
    (localise.maps-hold); otsu for all others (those of maps = oaa too)."""

    threshold: float = 0.5
    """Below this a pixel is background, for the threshold rule: a probability for posterior maps (0.5: class against
    background), a share of the map's peak for others."""

    power: float = 2.0
    """Exponent of the power rule."""

    saliency: bool = False
    """Take background from the saliency maps of data.saliency, as RCA and EPS do; a pixel where maps and saliency
    contradict one another is unsure."""

    unsure: float = 0.05
    """A pixel becomes 255 unless its label's probability (the geometric mean of the one by the maps and the one after
    refinement) exceeds one half by this."""

    max_side: int = 640
    """Long side in pixels at which maps are refined; those of larger images are enlarged from there."""

    def __post_init__(self) -> None:
        check(0 < self.threshold < 1, "masks.threshold", self.threshold, "between 0 and 1")
        check(self.power > 0, "masks.power", self.power, "more than 0")
        check(0 <= self.unsure < 0.5, "masks.unsure", self.unsure, "from 0 to below 0.5")
        check(self.max_side >= 64, "masks.max-side", self.max_side, "at least 64 pixels")

    def resolved(self, probabilities: bool) -> "MaskSettings":
        """Return the settings with the background rule that auto stands for, where maps are `probabilities` or not."""
        if self.background != "auto":
            return self
        return dataclasses.replace(self, background="rest" if probabilities else "otsu")
