"""Read tables of tags, CSV or JSON lines, as people and tools write them: tags in one column, or a column per class."""

import csv
import dataclasses
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tagseg.data.images import IMAGE_SUFFIXES
from tagseg.data.tag_rows import SPLITS, TagRow, unique
from tagseg.data.texts import read_text
from tagseg.errors import DataError
from tagseg.system.records import parse_json
from tagseg.system.tables import plain_cell
from tagseg.system.untrusted import shown

_IMAGE_COLUMNS = (
    *("image", "file", "file_name", "filename", "image_path", "file_path", "filepath", "path", "image_name", "img"),
    *("image_id", "imageid", "photo", "uri", "url", "name", "id"),
)
_TAG_COLUMNS = (
    *("tags", "tag", "labels", "label", "classes", "class", "label_name", "labelname", "class_name", "classname"),
    *("categories", "category", "choice", "choices"),
    *("species", "breed", "scores", "objects"),
)
_ONE_NAME = (
    "tag",
    "label",
    "class",
    "label_name",
    "labelname",
    "class_name",
    "classname",
    "category",
    "choice",
    "species",
    "breed",
)
"""Columns that are called after one tag: spaces are part of its name."""

_SCORE_COLUMNS = ("confidence", "score", "probability", "prob")
_SPLIT_COLUMNS = ("split", "subset", "data_set", "set")
_OTHER_COLUMNS = {"", "index", "width", "height", "source", "fold", "is_valid", "xmin", "xmax", "ymin", "ymax"}
"""Columns of numbers that are not classes."""

_TRUE, _FALSE = ("1", "1.0", "true", "yes", "x"), ("", "0", "0.0", "-1", "false", "no", "nan")


def read_table(
    file: Path, split: str = "train", min_score: float = 0.5, notes: list[str] | None = None
) -> list[TagRow]:
    """Read a table of tags; `split` is for rows without a split of their own; `notes` gets what the user should know.

    A table has a column for the image and one for its tags (tags with a score below `min_score` are dropped), or one
    column per class that holds 0 and 1, or scores. CSV may have any usual delimiter, and no header if its first
    cell is an image.

    Raises:
        DataError: with file and row, when the file cannot be read or has no columns for image and tags.
    """
    text = read_text(file)
    notes = [] if notes is None else notes
    if re.match(r"\s*Pixel Value\s*,", text):
        raise DataError(
            f"{file}: says what the values of masks mean (Roboflow's semantic segmentation), expected tags; write them "
            f"into {file.parent / 'tags.csv'}, or learn from the masks alone: tagseg segment --labels"
        )
    lines = _json_cells(file, text) if file.suffix.lower() == ".jsonl" else _csv_cells(file, text)
    head = next(lines, None)
    rows: Iterable[tuple[int, dict[str, object]]] = () if head is None else itertools.chain([head], lines)
    columns = [] if head is None else [name.lower() for name in head[1]]
    tag_columns = [name for name in _TAG_COLUMNS if name in columns]
    if len(tag_columns) > 1:
        notes.append(f"{file.name}: tags are read from column {tag_columns[0]}, not from {', '.join(tag_columns[1:])}")
    wide = head is not None and not tag_columns
    classes: list[str] = []
    if wide and head is not None:
        rows = list(rows)
        row = head[0] if file.suffix.lower() == ".jsonl" else 1
        classes = _class_columns(f"{file}, row {row}", list(head[1]), rows, min_score, notes)
    table = []
    for number, cells in rows:
        where = f"{file}, row {number}"
        lower = {name.lower(): value for name, value in cells.items()}
        split_cell = next((lower[column] for column in _SPLIT_COLUMNS if column in lower), None)
        named = "" if split_cell is None else str(split_cell).strip().lower()
        if named not in SPLITS:
            raise DataError(f"{where}: split {named!r}, expected train, val, validation or test")
        image = next((lower[column] for column in _IMAGE_COLUMNS if column in lower), None)
        for wanted in (_IMAGE_COLUMNS, () if wide else tag_columns or _TAG_COLUMNS):
            if wanted and not any(column in lower for column in wanted):
                raise DataError(f"{where}: got keys {', '.join(cells) or 'none'}, expected one of {', '.join(wanted)}")
        if isinstance(image, list | dict) or image is None:
            raise DataError(
                f"{where}: got {shown(image)}, expected the name of an image and its tags (text or a list of names)"
            )
        tags = _wide(cells, classes, min_score) if wide else _narrow(lower, tag_columns, where, min_score, notes)
        table.append(TagRow(where, str(image).strip(), tags, SPLITS[named] if named else split, file.parent))
    return _with_spaces(table, tag_columns, notes)


def _with_spaces(table: list[TagRow], tag_columns: Sequence[str], notes: list[str]) -> list[TagRow]:
    """Return rows whose cells with spaces are one name where the column says so; a note says how they are read."""
    cells = [row.tags for row in table if isinstance(row.tags, str)]
    spaced = next((cell for cell in cells if re.fullmatch(r"[^\s,;|:=\[({]+(\s+[^\s,;|:=\[({]+)+", cell.strip())), None)
    if spaced is None or any(re.search(r"[,;|:=\[({]", cell) for cell in cells) or not tag_columns:
        return table
    if tag_columns[0] in _ONE_NAME:
        notes.append(f"column {tag_columns[0]} holds one name per row, which may have spaces: {shown(spaced)}")
        return [
            dataclasses.replace(row, tags=unique([row.tags])) if isinstance(row.tags, str) else row for row in table
        ]
    if len({row.image for row in table}) == len(table):
        known = Counter(tuple(cell.split()) for cell in cells)
        together = next(_cut_names(known), None)
        if together is not None:
            notes.append(
                f"tags are separated by spaces: {shown(' '.join(together))} is {len(together)} tags (names with spaces "
                "need commas or semicolons between them)"
            )
    return table


def _cut_names(cells: Mapping[tuple[str, ...], int]) -> Iterator[tuple[str, ...]]:
    """Yield words that are probably one name, from cells split at spaces and how often each occurs: those of a cell
    that occur in no other one, then two of which one is never without the other beside it (`hot dog`)."""
    times = Counter(word for words in cells for word in set(words))
    yield from (words for words in sorted(cells) if len(words) > 1 and all(times[word] == 1 for word in words))
    seen, pairs = Counter[str](), Counter[tuple[str, str]]()
    for words, count in cells.items():
        seen.update(dict.fromkeys(words, count))
        pairs.update(dict.fromkeys(itertools.pairwise(words), count))
    for pair, count in pairs.most_common():
        if count > 1 and count in (seen[pair[0]], seen[pair[1]]):
            yield pair


def has_columns(file: Path) -> bool:
    """Tell whether a CSV looks like a table of tags: it has a column for images, and other columns."""
    try:
        with file.open("rb") as opened:
            line = opened.read(1 << 16).decode("utf-8-sig", "replace").split("\n", 1)[0]
    except OSError:
        return False
    names = [cell.strip().strip('"').lower() for cell in re.split("[,;\t|]", line)]
    return len(names) > 1 and (any(name in _IMAGE_COLUMNS for name in names) or names[0].endswith(IMAGE_SUFFIXES))


def _narrow(
    cells: Mapping[str, object], columns: Sequence[str], where: str, min_score: float, notes: list[str]
) -> str | tuple[str, ...]:
    """Return the tags of a row that has one of `columns` for them."""
    tags = next(cells[column] for column in columns or _TAG_COLUMNS if column in cells)
    score = next((cells[column] for column in _SCORE_COLUMNS if column in cells), None)
    if isinstance(tags, dict) and all(type(value) in (int, float, bool) for value in tags.values()):
        _say_threshold(notes, min_score)
        return unique(name for name, value in tags.items() if value >= min_score)
    for cell in tags if isinstance(tags, list) else [tags]:
        if isinstance(cell, list | dict):
            raise DataError(
                f"{where}: got {shown(cell)}, expected the name of an image and its tags (text or a list of names)"
            )
    if score is not None and str(score).strip():
        value = _number(score)
        if value is None:
            raise DataError(f"{where}: score {shown(score)}, expected a number")
        _say_threshold(notes, min_score)
        if value < min_score:
            return ()
    if isinstance(tags, list):
        return unique(tags)
    return "" if tags is None else str(tags)


def _wide(cells: Mapping[str, object], classes: Sequence[str], min_score: float) -> tuple[str, ...]:
    return unique(name for name in classes if _value(cells.get(name)) >= min_score)


def _class_columns(
    where: str,
    columns: Sequence[str],
    rows: Iterable[tuple[int, dict[str, object]]],
    min_score: float,
    notes: list[str],
) -> list[str]:
    """Return the columns that hold 0 and 1, or scores, for one class each."""
    others = {*_OTHER_COLUMNS, *_SPLIT_COLUMNS, *_SCORE_COLUMNS, *_IMAGE_COLUMNS}
    classes = [name for name in columns if name.lower() not in others and not name.lower().startswith("unnamed:")]
    for wanted in (_IMAGE_COLUMNS, _TAG_COLUMNS):
        if (wanted is _TAG_COLUMNS and not classes) or (
            wanted is _IMAGE_COLUMNS and not any(column.lower() in wanted for column in columns)
        ):
            kind = "keys" if where.partition(",")[0].endswith(".jsonl") else "columns"
            raise DataError(f"{where}: got {kind} {', '.join(columns) or 'none'}, expected one of {', '.join(wanted)}")
    scores = False
    for number, cells in rows:
        for name in classes:
            value = _value(cells.get(name))
            if not 0 <= value <= 1:
                raise DataError(
                    f"{where}: got columns {', '.join(columns)[:300]}, expected one of {', '.join(_TAG_COLUMNS)}, or a "
                    f"column per class with 0 and 1 or scores up to 1; row {number} has {shown(cells.get(name))} in "
                    f"column {name!r}"
                )
            scores = scores or 0 < value < 1
    if scores:
        _say_threshold(notes, min_score)
    return classes


def _say_threshold(notes: list[str], min_score: float) -> None:
    note = f"scores of at least {min_score:g} are tags (setting data.min-score)"
    if note not in notes:
        notes.append(note)


def _value(cell: object) -> float:
    """Return a cell of a class's column as a number: words for yes and no as 1 and 0, anything else as NaN."""
    text = "" if cell is None else str(cell).strip().lower()
    if text in _TRUE or text in _FALSE:
        return float(text in _TRUE)
    number = _number(text)
    return math.nan if number is None else number


def _number(cell: object) -> float | None:
    try:
        return float(str(cell).strip().replace(",", "."))
    except ValueError:
        return None


def _csv_cells(file: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    lines = io.StringIO(text, newline="")
    skipped = 0
    if re.match("sep=.\r?\n", text):  # Excel's first line
        lines.readline()
        skipped = 1
    start = lines.tell()
    first = lines.readline()
    lines.seek(start)
    counts = {mark: first.count(mark) for mark in ",;\t|"}
    delimiter = max(counts, key=lambda mark: counts[mark]) if any(counts.values()) else ","
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        lower = [cell.lower() for cell in header]
        known = any(name in _IMAGE_COLUMNS for name in lower)
        if not known and header and header[0].lower().endswith(IMAGE_SUFFIXES):
            lines.seek(start)
            reader = csv.reader(lines, delimiter=delimiter)
            header = lower = ["image", "tags"]
        elif not known or len(header) < 2:
            wanted = _IMAGE_COLUMNS if not known else _TAG_COLUMNS
            raise DataError(
                f"{file}, row {1 + skipped}: got columns {', '.join(header) or 'none'}, "
                f"expected one of {', '.join(wanted)}"
            )
        tags = next((lower.index(column) for column in _TAG_COLUMNS if column in lower), None)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            number = reader.line_num + skipped
            if len(cells) > len(header):
                if tags != len(header) - 1 or tags is None:
                    where = f"{file}, row {number}"
                    raise DataError(f"{where}: {len(cells)} cells, expected {len(header)}; put the tags in quotes")
                cells = [*cells[:tags], delimiter.join(cells[tags:])]
            cells = [*map(plain_cell, cells), *[""] * (len(header) - len(cells))]
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}, row {reader.line_num}: not valid CSV ({error})") from error


def _json_cells(file: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"{file}, row {number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise DataError(f"{file}, row {number}: got {line[:40]!r}, expected a JSON object")
        yield number, {str(key): value for key, value in record.items()}
