"""Photographs and tags that are given as Python values, written as a table of tags."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tagseg.data.tag_rows import SPLITS
from tagseg.errors import DataError
from tagseg.system.files import write_atomically
from tagseg.system.tables import csv_text
from tagseg.system.untrusted import shown

GivenData = Any
"""A data folder; `{photograph: tags}`; pairs of these; or a DataFrame with columns image and tags, perhaps split. Tags
are a list of names, or a text with commas between them."""

_COLUMNS = {
    "image": ("image", "file_name", "filename", "path", "file"),
    "tags": ("tags", "labels", "tag", "label", "class"),
    "split": ("split",),
}

_LISTED = 10


def write_tags(data: GivenData, table: Path) -> Path:
    """Write photographs and tags as a table for the setting data.tags, and return the data folder: the folder that
    holds all photographs.

    Raises:
        DataError: when data is none of `GivenData`, a photograph is missing or given twice, or there are none.
    """
    rows = [(Path(os.path.abspath(image)), tags, split) for image, tags, split in _rows(data)]
    if not rows:
        raise DataError("data: expected at least one photograph with its tags, found none")
    missing = [str(path) for path, _, _ in rows if not path.is_file()]
    if missing:
        more = ", ..." if len(missing) > _LISTED else ""
        raise DataError(f"data: {len(missing)} photographs are missing: {', '.join(missing[:_LISTED])}{more}")
    seen: set[Path] = set()
    for path, _, _ in rows:
        if path in seen:
            raise DataError(f"data: {path} is given twice; give all its tags at once")
        seen.add(path)
    root = Path(os.path.commonpath([path.parent for path in seen]))
    cells = ((path.relative_to(root).as_posix(), repr(list(tags)), split) for path, tags, split in rows)
    table.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(table, csv_text(("image", "tags", "split"), cells))
    return root


def _rows(data: Any) -> list[tuple[str | os.PathLike[str], tuple[str, ...], str]]:
    """Return photograph, tags and split of each entry."""
    if hasattr(data, "columns") and hasattr(data, "to_dict"):
        return _frame_rows(data)
    if isinstance(data, Mapping):
        data = data.items()
    elif not isinstance(data, Iterable):
        raise DataError(
            f"data: expected a data folder, a dict of photographs and tags, pairs of these or a DataFrame, got "
            f"{type(data).__name__}"
        )
    rows = []
    for number, one in enumerate(data):
        if isinstance(one, str | bytes) or not isinstance(one, Iterable) or len(pair := tuple(one)) != 2:
            raise DataError(f"data, entry {number}: got {shown(one)}, expected a photograph and its tags")
        rows.append((_photograph(pair[0], number), _names(pair[1], number), "train"))
    return rows


def _frame_rows(frame: Any) -> list[tuple[str | os.PathLike[str], tuple[str, ...], str]]:
    names = {str(name).lower(): name for name in frame.columns}
    found = {key: next((names[one] for one in known if one in names), None) for key, known in _COLUMNS.items()}
    for key in ("image", "tags"):
        if found[key] is None:
            raise DataError(f"data: got columns {', '.join(map(str, frame.columns))}, expected a column {key}")
    rows = []
    for number, row in enumerate(frame.to_dict("records")):
        split = str(row[found["split"]]).strip().lower() if found["split"] is not None else "train"
        if split not in SPLITS:
            raise DataError(f"data, entry {number}: split {split!r}, expected train, val or test")
        rows.append((_photograph(row[found["image"]], number), _names(row[found["tags"]], number), SPLITS[split]))
    return rows


def _photograph(value: object, number: int) -> str | os.PathLike[str]:
    if not isinstance(value, str | os.PathLike):
        raise DataError(f"data, entry {number}: got {shown(value)}, expected the path of a photograph")
    return value


def _names(value: Any, number: int) -> tuple[str, ...]:
    """Return the tags in a value: a list of names, or one text; None and NaN mean no tag."""
    if value is None or (isinstance(value, float) and value != value):
        return ()
    if isinstance(value, str):
        return tuple(name for name in (part.strip() for part in value.split(",")) if name)
    names = tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"data, entry {number}: got tags {shown(value)}, expected names")
    return names
