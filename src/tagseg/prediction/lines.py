"""predictions.jsonl: one line per image, next to the masks."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tagseg.errors import DataError
from tagseg.prediction.find_images import Location
from tagseg.segment.label_pixels import Decided
from tagseg.system.files import write_atomically, writing
from tagseg.system.untrusted import parse_json, read_bytes

LINES = "predictions.jsonl"
"""Name of the file."""

PredictionLine = dict[str, Any]


def image_line(location: Location, mask: str, decided: Decided, classes: Sequence[str]) -> PredictionLine:
    """Return an image's line: its location, mask file and size, and the classes found in it, largest area first."""
    height, width = decided.mask.shape
    found = [i for i in range(1, len(classes)) if decided.area[i] > 0]
    return {
        "image": str(location),
        "mask": mask,
        "width": width,
        "height": height,
        "classes": [
            {
                "id": i,
                "name": classes[i],
                "area": round(decided.area[i], 4),
                "confidence": round(decided.confidence[i], 4),
            }
            for i in sorted(found, key=lambda i: -decided.area[i])
        ],
    }


def read_lines(file: Path) -> list[PredictionLine]:
    """Return the lines of a predictions.jsonl, or none if it does not exist. An incomplete last line is dropped.

    Raises:
        DataError: naming the line that tagseg did not write.
    """
    if not file.exists():
        return []
    try:
        whole, _, _ = read_bytes(file).rpartition(b"\n")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}); move it away") from error
    lines = []
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = parse_json(text)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not JSON ({error}); move the file away") from error
        if not isinstance(line, dict) or not isinstance(line.get("image"), str):
            raise DataError(f"{file}, line {number}: names no image; move the file away")
        lines.append(line)
    return lines


def write_lines(file: Path, lines: Iterable[PredictionLine]) -> None:
    """Write a whole predictions.jsonl."""
    write_atomically(file, b"".join(map(_encoded, lines)))


def append_line(file: Path, line: PredictionLine) -> None:
    """Append a line. If it cannot be written as a whole, the file stays as it was."""
    before = file.stat().st_size
    try:
        with writing(file), file.open("ab") as opened:
            opened.write(_encoded(line))
    except BaseException:
        os.truncate(file, before)
        raise


def _encoded(line: PredictionLine) -> bytes:
    # A file name that is not valid Unicode contains lone surrogates, which JSON can escape and UTF-8 cannot encode.
    return (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
