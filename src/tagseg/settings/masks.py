"""Settings of section [masks]: from maps to masks."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from tagseg.settings.bounds import MaxSide, check_fields


@dataclass(frozen=True)
class MaskSettings:
    """From maps to masks."""

    background: Literal["auto", "rest", "otsu", "threshold", "power"] = "auto"
    """How background is found; no rule needs true masks. rest: background gets the probability that the tags leave
    (posterior maps); otsu: each map is cut where its histogram splits best; threshold: maps are cut at a constant;
    power: the background score is (1 - highest map) ^ power. auto: rest for posterior maps and for another method's
    probabilities (localise.maps-hold), otsu for all others, including maps = oaa."""

    threshold: Annotated[float, Gt(0), Lt(1)] = 0.5
    """For the rule threshold: a pixel below this is background. For posterior maps it is a probability (0.5: class
    and background are equally likely), for others a share of the map's peak."""

    power: Annotated[float, Gt(0), Le(10_000)] = 2.0
    """Exponent of the rule power."""

    saliency: bool = False
    """Take background from the saliency maps in data.saliency, as RCA and EPS do; a pixel where map and saliency
    disagree is unsure."""

    unsure: Annotated[float, Ge(0), Lt(0.5)] = 0.05
    """A pixel gets a label only if the label's probability exceeds one half by this; otherwise it is unsure (255). The
    probability is the geometric mean of those before and after refinement."""

    max_side: MaxSide = 640
    """Long side at which maps are refined; masks of larger images are enlarged from this size."""

    def __post_init__(self) -> None:
        check_fields(self, "setting masks.")

    def resolved(self, probabilities: bool) -> "MaskSettings":
        """Return the settings with the background rule that auto stands for; `probabilities` says what maps are."""
        if self.background != "auto":
            return self
        return dataclasses.replace(self, background="rest" if probabilities else "otsu")
