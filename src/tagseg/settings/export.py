"""How an export looks."""

import math
from dataclasses import dataclass

from tagseg.errors import DataError

LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves files from its local storage."""


@dataclass(frozen=True)
class ExportSettings:
    """How masks are written.

    parts: one annotation for each connected part, not one for each class and image. polygons: outlines, not run-length
    codes (COCO). tolerance: how far outlines may move, in pixels (0: exact). address: what stands before an image's
    path in Label Studio's tasks. min_part: connected parts of fewer pixels become background.
    """

    parts: bool = False
    polygons: bool = False
    tolerance: float = 1.0
    address: str = LOCAL_FILES
    min_part: int = 0

    def __post_init__(self) -> None:
        if not (self.tolerance >= 0 and math.isfinite(self.tolerance)):
            raise DataError(f"--tolerance {self.tolerance}: expected 0 or more pixels")
        if self.min_part < 0:
            raise DataError(f"--min-part {self.min_part}: expected 0 or more pixels")
