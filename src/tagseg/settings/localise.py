"""Settings of [localise]."""

from dataclasses import dataclass
from typing import Literal

from tagseg.settings.bounds import check


@dataclass(frozen=True)
class LocaliseSettings:
    """Maps of the tagged classes over the training images."""

    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Image scales whose maps are averaged."""

    flip: bool = True
    """Also average over the mirrored image."""

    max_side: int = 320
    """Larger images are reduced to this long side before the scales are applied: about 1.4 x train.crop, so that
    objects have the size the network learned."""

    kind: Literal["auto", "posterior", "refined", "coarse"] = "auto"
    """Which map to keep. posterior: the share of each cell's attention that goes to the class's prototypes, not to
    background's; refined: the map after aggregation; coarse: the plain class activation map. auto: posterior, or
    refined where the bank knows no background and with maps = eps, whose refined and coarse maps are the class's
    probability among the image's tags and the background channel."""

    maps_from: str = ""
    """Folder of another method's maps (.npz or .npy, named like the training images) to make masks from instead: no
    network is trained for maps then. docs/bring_your_own_maps.md says what the files hold."""

    maps_hold: Literal["activations", "probabilities"] = "activations"
    """What the values in localise.maps-from are. activations: any numbers, divided by each map's peak, below 0 counts
    as 0; probabilities: 0 to 1, kept as they are, and background has what they leave over."""

    def __post_init__(self) -> None:
        check(len(self.scales) > 0 and min(self.scales) > 0, "localise.scales", self.scales, "positive numbers")
        check(self.max_side >= 64, "localise.max-side", self.max_side, "at least 64 pixels")
