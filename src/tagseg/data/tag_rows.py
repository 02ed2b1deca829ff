"""Rows of tags from any source: the image's name, its tags or a cell that must be split, and its split."""

import ast
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagseg.errors import DataError
from tagseg.system.untrusted import shown

SPLITS = {
    "": "train",
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of splits in lower case, in folder names and in the split column."""

SPLIT_NAMES = tuple(name for name in SPLITS if name)
"""The names of splits that folders may have."""


@dataclass(frozen=True, slots=True)
class TagRow:
    """A row of a tag source: `where` is its file and row; `tags` is a cell that must be split, or a list of names.

    `folder` is searched for the image before others; `path` is the image where it is already known.
    """

    where: str
    image: str
    tags: str | tuple[str, ...]
    split: str
    folder: Path | None = None
    path: Path | None = None


def split_rows(rows: Iterable[TagRow], min_score: float = 0.5) -> list[tuple[str, ...]]:
    """Return the tags of each row.

    A cell may be a list as Python, JSON or NumPy write it. Spaces separate tags only if no cell of any row has a comma,
    semicolon or bar, and no image has several rows. `name:0.9` in every cell are scores; tags with a score below
    `min_score` are dropped.

    Raises:
        DataError: when a cell has brackets but is not a list that is understood.
    """
    rows = list(rows)
    listed = [_listed(row.tags) if isinstance(row.tags, str) else None for row in rows]
    cells = [row.tags for row, names in zip(rows, listed, strict=True) if isinstance(row.tags, str) and names is None]
    spaces = not any(re.search("[,;|]", cell) for cell in cells) and len({row.image for row in rows}) == len(rows)
    tags = [
        row.tags if isinstance(row.tags, tuple) else names if names is not None else split_tags(row.tags, spaces)
        for row, names in zip(rows, listed, strict=True)
    ]
    for row, names in zip(rows, tags, strict=True):
        if isinstance(row.tags, str) and any(map(_BRACKETS.search, names)):
            raise DataError(
                f"{row.where}: got {shown(row.tags)}, expected names of tags, or a list such as ['cat', 'dog']"
            )
    scores = [[_SCORED.fullmatch(name) for name in names] for names in tags]
    if any(scores) and all(all(found) for found in scores):
        return [unique(hit[1] for hit in found if hit is not None and float(hit[2]) >= min_score) for found in scores]
    return tags


_SCORED = re.compile(r"(.*\S)\s*[:=]\s*(0|1|1\.0*|0?\.[0-9]+(?:e-?[0-9]+)?)", re.DOTALL)
_BRACKETS = re.compile(r"""^[\[{(]+\s*['"\[{]|['"\]}]\s*[\]})]+$""")
"""What is left of the brackets of a list that is not understood."""

_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")
_LIST = re.compile(
    r"(?:(?:array|list|set|tuple|frozenset)\()?\s*(\[.*\]|\(.*\)|\{.*\})\s*(?:,\s*dtype=\S+\s*)?\)?", re.DOTALL
)


def _listed(cell: str) -> tuple[str, ...] | None:
    """Return the names in a cell that is a list, tuple, set or dict of scores; None if it is not one."""
    if re.fullmatch(r"(array|list|set|tuple|frozenset)\(\)", cell.strip()):
        return ()
    choices = re.fullmatch(r"""\s*\{\s*["']choices["']\s*:\s*(\[.*\])\s*\}\s*""", cell, re.DOTALL)  # Label Studio's CSV
    found = _LIST.fullmatch(choices[1] if choices else cell.strip())
    if found is None:
        return None
    inner = found[1][1:-1].strip()
    quoted = list(_QUOTED.finditer(inner))
    rest = _QUOTED.sub("\0", inner)
    if quoted and re.fullmatch(r"[\0\s,]*", rest):
        return unique(_unescaped(hit[0]) for hit in quoted)
    if quoted and re.fullmatch(r"(\0\s*:\s*[0-9.e+-]+\s*,?\s*)*", rest):
        values = re.findall(r":\s*([0-9.e+-]+)", rest)
        return tuple(f"{_unescaped(hit[0])}:{value}" for hit, value in zip(quoted, values, strict=True))
    if quoted or ":" in inner:
        return None
    return split_tags(inner, spaces="," not in inner)


def _unescaped(literal: str) -> str:
    try:
        return str(ast.literal_eval(literal))
    except (ValueError, SyntaxError):
        return literal[1:-1]


def split_tags(cell: str, spaces: bool) -> tuple[str, ...]:
    """Split a cell at spaces if `spaces`, else at commas, semicolons and bars; repeated tags are dropped."""
    return unique(cell.split() if spaces else re.split("[,;|]", cell))


def unique(names: Iterable[object]) -> tuple[str, ...]:
    """Return names without spaces around them, in composed Unicode (macOS decomposes it), each once."""
    stripped = (unicodedata.normalize("NFC", str(name).strip()) for name in names)
    return tuple(dict.fromkeys(name for name in stripped if name))


_SPLIT_FOLDER = re.compile(
    r"(?:seg|images?|imgs?|data|dataset|photos?|pictures?|clean)?"
    rf"({'|'.join(sorted((*SPLIT_NAMES, 'trainval'), key=len, reverse=True))})"
    r"(?:sets?|data|dataset|images?|imgs?|photos?|pictures?|split|folder|files|all|clean)?"
)


def split_of_folder(name: str) -> str | None:
    """Return the split that the whole name of a folder means (train, Testing, training_set, seg_val, val2017), or None.

    Digits and punctuation do not count: `test 2` is a split, `train_station` is not.
    """
    found = _SPLIT_FOLDER.fullmatch(re.sub(r"[\W\d_]+", "", name.lower()))
    return found and SPLITS.get(found[1], "train")


def split_of(name: str) -> str | None:
    """Return the split that the start of a file or folder name means (train_2017, val-000), or None."""
    words: Sequence[str] = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLIT_NAMES), None)
