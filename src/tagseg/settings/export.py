"""Settings of `tagseg export`."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Unit
from cyclopts import Parameter

from tagseg.errors import DataError
from tagseg.settings.bounds import check_fields

LOCAL_FILES = "/data/local-files/?d=images/"
"""Address of the images of an export in Label Studio, if the export is its document root and `images` its storage."""


@dataclass(frozen=True)
class ExportSettings:
    """How masks are written in another tool's format."""

    parts: Annotated[bool, Parameter(negative=())] = False
    """One annotation per connected part instead of one per class and image; yolo always does this."""

    polygons: Annotated[bool, Parameter(negative=())] = False
    """Outlines as polygons instead of exact masks (coco, cvat, labelme)."""

    tolerance: Annotated[float, Ge(0), Unit("pixels")] = 1.0
    """How far an outline may move, in pixels (0: exact)."""

    address: str = LOCAL_FILES
    """Text before an image's path in Label Studio's tasks."""

    min_part: Annotated[int, Ge(0), Unit("pixels")] = 0
    """Smallest connected part to keep, in pixels; smaller parts become background."""

    def __post_init__(self) -> None:
        check_fields(self, "--", DataError)
