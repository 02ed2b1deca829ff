"""Settings of section [report]: the report page."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from tagseg.settings.bounds import check_fields


@dataclass(frozen=True)
class ReportSettings:
    """The report page."""

    examples: Annotated[int, Ge(0)] = 24
    """Rows of pictures in the report; the segmentation network predicts these training images as well."""

    title: str = "tagseg report"
    """Title of the page."""

    def __post_init__(self) -> None:
        check_fields(self, "setting report.")
