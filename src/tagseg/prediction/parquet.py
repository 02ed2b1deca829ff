"""Masks in Parquet files: masks-000000.parquet and so on, one row per image and `rows` rows per file.

The images in a file depend only on the order of the images, and a file is either complete or absent. After any
interruption the remaining files therefore get the same bytes as without it.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tagseg.errors import DataError
from tagseg.prediction.find_images import Location
from tagseg.prediction.lines import LINES, PredictionLine, read_predictions
from tagseg.prediction.outputs import Outcome
from tagseg.settings.predict import PredictOptions
from tagseg.system.files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_GROUP = 250
"""Rows that are written together, and that a reader loads at a time; with masks of photographs they take a few MB."""


def part_file(number: int) -> str:
    """Return the name of a file of masks."""
    return f"masks-{number:06d}.parquet"


def pending_rows(
    found: Mapping[str, Location], out: Path, options: PredictOptions
) -> tuple[list[str], list[PredictionLine]]:
    """Return the names of the images that are to be predicted, and the lines of predictions.jsonl to keep: those of
    the complete files.

    Raises:
        DataError: if pyarrow is not installed, if files exist and neither `force` nor `resume` is set, or if the
            existing files are of other images or were written with other `rows`.
    """
    _import_pyarrow()
    present = sorted(_parts(out).values())
    lines = [] if options.force else read_predictions(out / LINES)
    if present and not (options.force or options.resume):
        raise DataError(
            f"{present[0]}: already exists; choose another --out, add --resume to continue after the existing files, "
            "or --force to predict all images again"
        )
    names = list(found)
    for place, line in enumerate(lines):
        expected = (str(found[names[place]]), part_file(place // options.rows)) if place < len(names) else ("none", "")
        if (line.image, line.mask or expected[1]) != expected:
            raise DataError(
                f"{out / LINES}, line {place + 1}: has {line.image} in {line.mask or 'no file'}, expected "
                f"{expected[0]} in {expected[1] or 'no file'}: it was written for other images or with another --rows; "
                "choose another --out, or add --force to predict all images again"
            )
    complete = len(lines) // options.rows if len(lines) < len(names) else -(-len(lines) // options.rows)
    kept = next((number for number in range(complete) if not (out / part_file(number)).exists()), complete)
    return names[kept * options.rows :], lines[: kept * options.rows]


def write_parts(outcomes: Iterator[Outcome], out: Path, done: int, todo: int, rows: int) -> Iterator[PredictionLine]:
    """Write files of masks, and yield the lines of a file's images once it is complete.

    The first `done` images are in files written before; `todo` are to come. Files that an earlier prediction left in
    the place of the new ones are deleted first.
    """
    for number, file in _parts(out).items():
        if number * rows >= done:
            file.unlink()
    for first in range(done, done + todo, rows):
        part = itertools.islice(outcomes, rows)
        yield from _write_part(part, out / part_file(first // rows), min(rows, done + todo - first))


def _parts(out: Path) -> dict[int, Path]:
    named = ((re.fullmatch(r"masks-([0-9]{6,})\.parquet", file.name), file) for file in out.glob("masks-*.parquet"))
    return {int(name[1]): file for name, file in named if name}


def _write_part(outcomes: Iterator[Outcome], file: Path, count: int) -> list[PredictionLine]:
    arrow = _import_pyarrow()
    import pyarrow.parquet as parquet

    schema, lines = _schema(arrow), []
    with (
        atomic_path(file) as temporary,
        parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        while group := list(itertools.islice(outcomes, ROWS_PER_GROUP)):
            rows = [_row(outcome) for outcome in group if outcome.files]
            writer.write_table(arrow.Table.from_pylist(rows, schema))
            lines += [
                msgspec.structs.replace(outcome.line, mask=file.name) if outcome.files else outcome.line
                for outcome in group
            ]
    assert len(lines) == count, f"{file}: got {len(lines)} images, expected {count}"
    return lines


def _row(outcome: Outcome) -> dict[str, Any]:
    line, (mask,) = outcome.line, outcome.files.values()
    columns = {"classes": "id", "names": "name", "areas": "area", "confidences": "confidence"}
    return {
        "id": _text(outcome.name),
        "image": _text(line.image),
        "width": line.width,
        "height": line.height,
        "mask": mask,
        **{column: [getattr(one, key) for one in line.classes or ()] for column, key in columns.items()},
    }


def _schema(arrow: Any) -> "pa.Schema":
    texts, numbers = arrow.list_(arrow.string()), arrow.list_(arrow.float64())
    return arrow.schema(
        {
            "id": arrow.string(),
            "image": arrow.string(),
            "width": arrow.int32(),
            "height": arrow.int32(),
            "mask": arrow.binary(),
            "classes": arrow.list_(arrow.uint8()),
            "names": texts,
            "areas": numbers,
            "confidences": numbers,
        }
    )


def _text(name: str) -> str:
    # As in predictions.jsonl: file names may contain bytes that are not valid Unicode.
    return name.encode("utf-8", "backslashreplace").decode()


def _import_pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError("--format parquet needs pyarrow: pip install 'tagseg[ray]'") from error
    return pyarrow
