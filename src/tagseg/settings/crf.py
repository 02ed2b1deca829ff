"""Settings of [crf]."""

import math
from dataclasses import dataclass

from tagseg.settings.bounds import check


@dataclass(frozen=True)
class CrfSettings:
    """Dense CRF: refines masks along the edges of the image (Kraehenbuehl and Koltun 2011)."""

    steps: int = 10
    """Steps of mean field inference (0: no CRF)."""

    gaussian_sxy: float = 3.0
    """Reach of the Gaussian kernel, a standard deviation in pixels of an image whose long side is 500 pixels; it is
    scaled for others."""

    gaussian_compat: float = 3.0
    """Weight of the Gaussian kernel, which smooths (0: without)."""

    bilateral_sxy: float = 80.0
    """Reach of the bilateral kernel, as crf.gaussian-sxy."""

    bilateral_srgb: float = 13.0
    """Standard deviation of the bilateral kernel in levels of red, green and blue (0..255)."""

    bilateral_compat: float = 10.0
    """Weight of the bilateral kernel, by which pixels of like colour get the same label (0: without)."""

    def __post_init__(self) -> None:
        check(self.steps >= 0, "crf.steps", self.steps, "0 or more")
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            value = getattr(self, name)
            check(0 < value < math.inf, f"crf.{name.replace('_', '-')}", value, "more than 0")
        for name in ("gaussian_compat", "bilateral_compat"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"crf.{name.replace('_', '-')}", value, "0 or more")
