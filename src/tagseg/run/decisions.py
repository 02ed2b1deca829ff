"""The decisions of reviewers about masks, in a database in the run folder."""

import contextlib
import functools
import hashlib
import io
import sqlite3
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tagseg.errors import RunError
from tagseg.run.folder import Run
from tagseg.system.databases import open_database
from tagseg.system.files import writing
from tagseg.system.records import ClassId, Record, parse_record, record_line
from tagseg.system.untrusted import shown

Verdict = Literal["open", "accepted", "rejected", "flagged"]

NEUTRAL = 0.5
"""The threshold that leaves masks as the run's settings make them."""

_TABLE = """create table if not exists decisions (
    id text primary key, verdict text not null, off text not null, threshold real not null, decided blob, sure blob,
    time text not null default current_timestamp
)"""


def _require_verdict(verdict: str) -> None:
    if verdict not in get_args(Verdict):
        raise ValueError(f"verdict {shown(verdict)}: expected {', '.join(get_args(Verdict))}")


@dataclass(frozen=True)
class Decision:
    """A decision about an image.

    verdict: `accepted` masks are kept as they were shown, even if the networks are trained again; `rejected` masks
    become 255 everywhere; `flagged` masks wait for a second look and do not change. off: ids of classes that the image
    does not show. threshold: the probability, relative to background, from which a pixel belongs to a class.
    """

    verdict: Verdict = "open"
    off: tuple[int, ...] = ()
    threshold: float = NEUTRAL

    def __post_init__(self) -> None:
        _require_verdict(self.verdict)
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold {self.threshold!r}: expected a number between 0 and 1")
        if not all(isinstance(class_id, int) and 0 < class_id < 255 for class_id in self.off):
            raise ValueError(f"off {self.off!r}: expected class ids, 1 to 254")

    def changes_masks(self) -> bool:
        """Tell whether the decision changes the masks, or keeps them from changing."""
        return self.verdict in ("accepted", "rejected") or bool(self.off) or self.threshold != NEUTRAL


class OffClasses(Record, frozen=True):
    """The column `off` of the database: a list of class ids."""

    bare: ClassVar[bool] = True
    ids: tuple[ClassId, ...]


OPEN = Decision()
"""The decision about an image that was not reviewed."""

MaskPair = tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]
"""An image's masks: one that decides every pixel, and one in which unsure pixels are 255."""


def record_decision(run: Run, sample_id: str, decision: Decision, masks: MaskPair | None = None) -> None:
    """Store a decision about an image, in place of an earlier one; `masks` are the accepted ones.

    Raises:
        RunError: when the database cannot be written.
    """
    assert (decision.verdict == "accepted") == (masks is not None), "masks are stored if and only if they are accepted"
    kept = [_packed(mask) for mask in masks] if masks is not None else [None, None]
    with writing(run.decisions_file):
        run.review.mkdir(parents=True, exist_ok=True)
    row = (sample_id, decision.verdict, record_line(OffClasses(decision.off)).rstrip(), decision.threshold, *kept)
    with _open(run) as database, database:
        database.execute(_TABLE)
        columns = "id, verdict, off, threshold, decided, sure"
        database.execute(f"insert or replace into decisions ({columns}) values (?, ?, ?, ?, ?, ?)", row)


def decision_of(run: Run, sample_id: str) -> Decision:
    """Return the decision about an image; `OPEN` if there is none."""
    rows = _select(run, "select verdict, off, threshold from decisions where id = ?", sample_id)
    return _decision(run, sample_id, *rows[0]) if rows else OPEN


def decisions(run: Run) -> dict[str, Decision]:
    """Return all decisions by sample id."""
    rows = _select(run, "select id, verdict, off, threshold from decisions")
    return {row[0]: _decision(run, *row) for row in rows}


def accepted_masks(run: Run, sample_id: str, size: tuple[int, int] | None = None) -> MaskPair | None:
    """Return the accepted masks of an image.

    None if there are none, or if they are not of `size` (height, width) because the image has another size now.

    Raises:
        RunError: when the masks or the database are damaged.
    """
    query = "select decided, sure from decisions where id = ? and verdict = 'accepted'"
    rows = _select(run, query, sample_id)
    if not rows:
        return None
    decided, sure = (_unpacked(run, sample_id, content, size) for content in rows[0])
    return None if decided is None or sure is None or decided.shape != sure.shape else (decided, sure)


def decision_digests(run: Run) -> dict[str, str]:
    """Return a short digest of every decision that changes masks, accepted masks included, by sample id."""
    rows = _select(run, "select id, verdict, off, threshold, decided, sure from decisions order by id")
    return {
        row[0]: hashlib.sha256(repr(row[1:]).encode()).hexdigest()[:16]
        for row in rows
        if _decision(run, *row[:4]).changes_masks()
    }


def check_database(run: Run) -> None:
    """Check that the database of a run's decisions, if there is one, is intact.

    Raises:
        RunError: when it is damaged.
    """
    found = _select(run, "pragma quick_check")
    if found not in ([], [("ok",)]):
        raise _damaged(run, found[0][0])


def _decision(run: Run, sample_id: Any, verdict: Any, off: Any, threshold: Any) -> Decision:
    try:
        for column, value, kinds in (
            ("id", sample_id, str),
            ("verdict", verdict, str),
            ("off", off, str),
            ("threshold", threshold, (int, float)),
        ):
            if not isinstance(value, kinds):
                raise ValueError(f"{column} is {shown(value)}, expected {'text' if kinds is str else 'a number'}")
        _require_verdict(verdict)
        return Decision(verdict, _class_ids(off), float(threshold))
    except ValueError as error:
        raise _damaged(run, error) from error


def _class_ids(off: str) -> tuple[int, ...]:
    try:
        return parse_record(off.encode(), OffClasses).ids
    except ValueError as error:
        raise ValueError(f"off{error}") from error


def _packed(mask: UInt8[np.ndarray, "H W"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def _unpacked(run: Run, sample_id: str, content: Any, size: tuple[int, int] | None) -> UInt8[np.ndarray, "H W"] | None:
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if size is not None and (picture.height, picture.width) != size:
                return None
            if picture.mode != "L":
                raise ValueError(f"mode {picture.mode}")
            return np.array(picture)
    except Exception as error:  # Pillow raises errors of many kinds
        raise _damaged(run, f"the accepted mask of image {shown(sample_id)}: {error}") from error


def _select(run: Run, query: str, *values: str) -> list[tuple[Any, ...]]:
    if not run.decisions_file.exists():
        return []
    with _open(run) as database:
        # A kill, or a full disk, before the first decision leaves a file without a table.
        empty = not query.startswith("pragma") and not database.execute("select 1 from sqlite_master").fetchone()
        return [] if empty else database.execute(query, values).fetchall()


def _open(run: Run) -> contextlib.AbstractContextManager[sqlite3.Connection]:
    return open_database(run.decisions_file, _TABLE, functools.partial(_damaged, run))


def _damaged(run: Run, why: object) -> RunError:
    return RunError(f"{run.decisions_file}: damaged ({why}); restore a copy, or delete it and lose all decisions")
