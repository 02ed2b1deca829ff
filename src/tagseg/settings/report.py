"""Settings of [report]."""

from dataclasses import dataclass

from tagseg.settings.bounds import check


@dataclass(frozen=True)
class ReportSettings:
    """The report page."""

    examples: int = 24
    """Rows of pictures in the report; the segmenter predicts these training images too."""

    title: str = "tagseg report"
    """Title of the page."""

    def __post_init__(self) -> None:
        check(self.examples >= 0, "report.examples", self.examples, "0 or more")
