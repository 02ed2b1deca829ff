"""Settings of section [localise]: the maps of the training images."""

from dataclasses import dataclass
from typing import Literal

from tagseg.settings.bounds import MaxSide, Scales, check_fields


@dataclass(frozen=True)
class LocaliseSettings:
    """The maps of each training image's tags."""

    scales: Scales = (0.5, 1.0, 2.0)
    """Image scales at which maps are computed and then averaged."""

    flip: bool = True
    """Also average over the mirrored image."""

    max_side: MaxSide = 320
    """Long side to which larger images are reduced before the scales apply. About 1.4 x train.crop gives objects the
    size at which the network was trained."""

    kind: Literal["auto", "posterior", "refined", "coarse"] = "auto"
    """Which map to keep. posterior: the share of a cell's attention that goes to the class's prototypes and not to the
    background's; refined: the map after aggregation; coarse: the plain class activation map. auto: posterior, or
    refined if the bank stores no background or maps = eps; there, refined and coarse maps are the class's probability
    among the image's tags and the background channel."""

    maps_from: str = ""
    """Folder of another method's maps (.npz or .npy, named like the training images) from which masks are made; no
    network is trained for maps then. docs/bring_your_own_maps.md describes the files."""

    maps_hold: Literal["activations", "probabilities"] = "activations"
    """What the values in localise.maps-from are. activations: any numbers; each map is divided by its peak, and values
    below 0 count as 0. probabilities: 0 to 1, used unchanged; background gets the remainder."""

    def __post_init__(self) -> None:
        check_fields(self, "setting localise.")
