"""Masks as Parquet files: masks-000000.parquet and so on, a row an image, as many rows a file as --rows says.

Which images are in a file depends on nothing but their order, and a file is there whole or not at all: after any
interruption the rest becomes what it would have been.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tagseg.errors import DataError
from tagseg.prediction.find_images import Location
from tagseg.prediction.outputs import LINES, Outcome, PredictionLine, read_lines
from tagseg.settings.predict import PredictOptions
from tagseg.system.files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 250
"""Rows that are written together, and that a reader takes into memory at a time; masks of photographs make a few MB."""


def part_file(number: int) -> str:
    """Return the name of a file of masks."""
    return f"masks-{number:06d}.parquet"


def begin_parts(
    found: Mapping[str, Location], out: Path, options: PredictOptions
) -> tuple[list[str], list[PredictionLine]]:
    """Return the names of the images that are to be predicted, and the lines of predictions.jsonl that stay: those of
    the files that are whole.

    Raises:
        DataError: when pyarrow is missing, files exist and neither `force` nor `resume` is given, or what is there is
            of other images or was written with other `rows`.
    """
    _pyarrow()
    present = sorted(_parts(out).values())
    lines = [] if options.force else read_lines(out / LINES)
    if present and not (options.force or options.resume):
        raise DataError(
            f"{present[0]}: exists; choose another --out, --resume to go on behind the files that are there, or "
            "--force to do all again"
        )
    names = list(found)
    for place, line in enumerate(lines):
        expected = (str(found[names[place]]), part_file(place // options.rows)) if place < len(names) else ("none", "")
        if (line.image, line.mask or expected[1]) != expected:
            raise DataError(
                f"{out / LINES}, line {place + 1}: of {line.image} in {line.mask or 'no file'}, expected "
                f"{expected[0]} in {expected[1] or 'no file'}: written of other images or with another --rows; choose "
                "another --out, or --force to do all again"
            )
    whole = len(lines) // options.rows if len(lines) < len(names) else -(-len(lines) // options.rows)
    kept = next((number for number in range(whole) if not (out / part_file(number)).exists()), whole)
    return names[kept * options.rows :], lines[: kept * options.rows]


def write_parts(outcomes: Iterator[Outcome], out: Path, done: int, todo: int, rows: int) -> Iterator[PredictionLine]:
    """Write files of masks and yield their images' lines, each when its file is there. `done` images lie in files
    before these; `todo` are to come, and what earlier predictions left in their place is deleted first."""
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
    arrow = _pyarrow()
    import pyarrow.parquet as parquet

    schema, lines = _schema(arrow), []
    with (
        atomic_path(file) as temporary,
        parquet.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        while group := list(itertools.islice(outcomes, GROUP)):
            rows = [_row(outcome) for outcome in group if outcome.files]
            writer.write_table(arrow.Table.from_pylist(rows, schema))
            lines += [
                msgspec.structs.replace(outcome.line, mask=file.name) if outcome.files else outcome.line
                for outcome in group
            ]
    assert len(lines) == count, f"{file}: {len(lines)} images came, {count} were expected"
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
    # As in predictions.jsonl: file names may hold bytes that are no Unicode.
    return name.encode("utf-8", "backslashreplace").decode()


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError("--format parquet needs pyarrow: pip install 'tagseg[ray]'") from error
    return pyarrow
