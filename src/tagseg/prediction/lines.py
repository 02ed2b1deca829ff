"""predictions.jsonl: one line per image, next to the masks."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from tagseg.errors import DataError
from tagseg.prediction.find_images import Location
from tagseg.segment.label_pixels import Decided
from tagseg.system import records
from tagseg.system.files import write_atomically, writing
from tagseg.system.records import ClassId, Positive, Record, Share

LINES = "predictions.jsonl"
"""Name of the file."""


class PredictedClass(msgspec.Struct, frozen=True):
    """A class in a predicted mask, with its share of the image and its mean probability there."""

    id: ClassId
    name: str
    area: Share
    confidence: Share


class PredictionLine(Record, frozen=True, omit_defaults=True):
    """A line of predictions.jsonl.

    image: path or address of the image. mask: the mask's file below the folder of the masks. width, height: in pixels.
    classes: those in the mask, largest area first. error: why the image cannot be read; the others are None then.
    """

    image: str
    mask: str | None = None
    width: Positive | None = None
    height: Positive | None = None
    classes: tuple[PredictedClass, ...] | None = None
    error: str | None = None


def image_line(location: Location, mask: str, decided: Decided, classes: Sequence[str]) -> PredictionLine:
    """Return an image's line: its location, mask file and size, and the classes found in it, largest area first."""
    height, width = decided.mask.shape
    found = [i for i in range(1, len(classes)) if decided.area[i] > 0]
    areas = tuple(
        PredictedClass(i, classes[i], round(decided.area[i], 4), round(decided.confidence[i], 4))
        for i in sorted(found, key=lambda i: -decided.area[i])
    )
    return PredictionLine(str(location), mask, width, height, areas)


def read_predictions(file: Path) -> list[PredictionLine]:
    """Return the lines of a predictions.jsonl, or none if it does not exist. An incomplete last line is dropped.

    Raises:
        DataError: naming the line that tagseg did not write.
    """
    if not file.exists():
        return []
    return list(records.read_lines(file, PredictionLine, "move the file away", DataError, lenient=True))


def write_predictions(file: Path, lines: Iterable[PredictionLine]) -> None:
    """Write a whole predictions.jsonl."""
    write_atomically(file, b"".join(map(encoded_line, lines)))


def append_line(file: Path, line: PredictionLine) -> None:
    """Append a line. If it cannot be written as a whole, the file stays as it was."""
    before = file.stat().st_size
    try:
        with writing(file), file.open("ab") as opened:
            opened.write(encoded_line(line))
    except BaseException:
        os.truncate(file, before)
        raise


def encoded_line(line: PredictionLine) -> bytes:
    """Return a line of predictions.jsonl as it is written."""
    # A file name that is not valid Unicode contains lone surrogates, which JSON can escape and UTF-8 cannot encode.
    return records.record_line(line).encode("utf-8", "backslashreplace")
