"""Settings of section [crf]: the dense CRF."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from tagseg.settings.bounds import check_fields


@dataclass(frozen=True)
class CrfSettings:
    """The dense CRF, which aligns masks with the edges of the image (Kraehenbuehl and Koltun 2011)."""

    steps: Annotated[int, Ge(0)] = 10
    """Iterations of mean field inference (0: no CRF)."""

    gaussian_sxy: Annotated[float, Ge(0.01), Le(100_000)] = 3.0
    """Standard deviation of the Gaussian kernel in pixels, for an image whose long side is 500 pixels; it scales with
    the image."""

    gaussian_compat: Annotated[float, Ge(0), Le(10_000)] = 3.0
    """Weight of the Gaussian kernel, which smooths the mask (0: off)."""

    bilateral_sxy: Annotated[float, Ge(0.01), Le(100_000)] = 80.0
    """Standard deviation of the bilateral kernel in pixels; it scales like crf.gaussian-sxy."""

    bilateral_srgb: Annotated[float, Ge(0.01), Le(100_000)] = 13.0
    """Standard deviation of the bilateral kernel in colour, in levels of red, green and blue (0 to 255)."""

    bilateral_compat: Annotated[float, Ge(0), Le(10_000)] = 10.0
    """Weight of the bilateral kernel, which gives pixels of similar colour the same label (0: off)."""

    def __post_init__(self) -> None:
        check_fields(self, "setting crf.")
