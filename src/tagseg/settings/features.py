"""Settings of section [features]: the cache of backbone features."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from tagseg.settings.bounds import MaxSide, Scales, check_fields


@dataclass(frozen=True)
class FeatureSettings:
    """The features of every image, computed once and kept in the run folder."""

    layers: Annotated[tuple[str, ...], MinLen(1)] = ("auto",)
    """Layers of the backbone whose features are kept. auto: the last map, the output of the block before the last, and
    the last map of each finer resolution up to 8 pixels per cell; last: the last map; or names of the backbone's
    modules."""

    scales: Scales = (1.0, 2.0)
    """Image scales at which features are computed."""

    max_side: MaxSide = 320
    """Long side to which larger images are reduced before the scales apply."""

    channels: Annotated[int, Ge(0)] = 128
    """Principal components kept per layer. The log says which share of the variance is lost (0: keep all channels)."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation. auto: bf16 where a short test shows that it is faster here and its features
    agree with those of fp32, else fp32."""

    def __post_init__(self) -> None:
        check_fields(self, "setting features.")
