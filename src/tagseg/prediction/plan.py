"""What every step of a prediction needs to know besides the network."""

from dataclasses import dataclass

from tagseg.segment.resolution import Resolution
from tagseg.settings.crf import CrfSettings


@dataclass(frozen=True)
class Plan:
    """How images are read and what is written for each, fixed for a whole prediction.

    It holds no network, so that processes without PyTorch can use it. `resolution` and `max_megapixels` apply to
    reading; `crf` refines the masks, if it is given; `overlays` and `probabilities` ask for further files.
    """

    classes: tuple[str, ...]
    resolution: Resolution
    max_megapixels: float
    crf: CrfSettings | None = None
    overlays: bool = False
    probabilities: bool = False

    @property
    def needs_all_probabilities(self) -> bool:
        """Whether finishing an image takes the probabilities of all classes, or only of the likely ones."""
        return self.crf is not None or self.probabilities
