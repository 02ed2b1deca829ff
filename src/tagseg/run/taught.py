"""What a person taught a run: answers about clusters of cells, clicks and brush strokes, in a database.

An answer names places in images, never features: so it holds for every later backbone, and for a copy of the data. Each
is a row of its own that is only added or removed, so that two pages that are open at once lose nothing.
"""

import contextlib
import functools
import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from tagseg.errors import RunError
from tagseg.run.decisions import decision_digests
from tagseg.run.folder import Run
from tagseg.system.databases import open_database
from tagseg.system.files import remove_abandoned, writing
from tagseg.system.records import Positive, Record, Share, parse_record, read_record, record_line, write_record

Meant = Literal["class", "background", "mixed", "skip"]

_TABLE = """create table if not exists answers (
    number integer primary key autoincrement, question text unique, image text, answer text not null,
    time text not null default current_timestamp
)"""

_MOST_POINTS = 20_000
_Points = Annotated[tuple[tuple[Share, Share], ...], msgspec.Meta(min_length=1, max_length=_MOST_POINTS)]


class Places(msgspec.Struct, frozen=True):
    """Points of an image: `x` and `y` as shares (0..1) of its width and height, from the upper left corner."""

    image: str
    points: _Points


class Answer(Record, frozen=True, omit_defaults=True, kw_only=True):
    """One thing that a person said.

    kind: a `cluster` of similar cells in many images, a `click` on a region of one image, or a `brush` stroke in it.
    meaning: what is there; `mixed` (to be split) and `skip` are for clusters only. name: the class, if the meaning is
    one. places: cells of the cluster, cells of the region around the click with the clicked one first, or the points of
    the stroke. tag: the class in whose images the cluster was found. question: what the cluster is called, so that it
    is not asked again; empty if unknown. grid: the (height, width) in cells of the map to which a click's cells belong.
    radius: that of the brush, as a share of the image's long side.
    """

    kind: Literal["cluster", "click", "brush"]
    meaning: Meant
    name: str = ""
    places: Annotated[tuple[Places, ...], msgspec.Meta(min_length=1, max_length=1000)]
    tag: str = ""
    question: str = ""
    grid: tuple[Positive, Positive] | None = None
    radius: Share = 0.0

    def __post_init__(self) -> None:
        if (self.meaning == "class") != bool(self.name):
            raise ValueError(f"name must be given if and only if the meaning is a class, found {self.name!r:.100}")
        if self.kind != "cluster" and (self.meaning in ("mixed", "skip") or len(self.places) > 1):
            raise ValueError(f"a {self.kind} must say what one image shows there, found {self.meaning!r}")
        if (self.kind == "click") != (self.grid is not None) or (self.kind == "brush") != (self.radius > 0):
            raise ValueError("a click must have a grid, a brush stroke a radius, and nothing else may have them")

    @property
    def teaches(self) -> bool:
        """Whether the answer's cells enter the memory bank."""
        return self.kind != "brush" and self.meaning in ("class", "background")

    @property
    def image(self) -> str | None:
        """The image whose mask a click or a stroke fixes; None for a cluster."""
        return None if self.kind == "cluster" else self.places[0].image


class TaughtFile(Record, frozen=True):
    """A file of answers, as `tagseg teach --export` writes it."""

    format: Literal[1]
    answers: tuple[Answer, ...]


def record_answer(run: Run, answer: Answer) -> int:
    """Store an answer and return its number, which is never used again.

    Raises:
        RunError: when the cluster was named already, or the database cannot be written.
    """
    with writing(run.taught_file):
        run.review.mkdir(parents=True, exist_ok=True)
    with _open(run) as database:
        return _insert(database, run, (answer,))[0]


def answers(run: Run) -> dict[int, Answer]:
    """Return all answers by number, in the order in which they were given.

    Raises:
        RunError: when the database is damaged.
    """
    return _select(run, "select number, answer from answers order by number")


def remove_answer(run: Run, number: int) -> Answer:
    """Delete an answer and return it.

    Raises:
        RunError: when there is no answer of this number, or the database cannot be written.
    """
    found = answers(run).get(number)
    if found is not None:
        with _open(run) as database, database:
            if not database.execute("delete from answers where number = ?", (number,)).rowcount:
                found = None
    if found is None:
        raise RunError(f"{run.taught_file}: must hold answer {number}, but has none of this number; it may be undone")
    return found


def export_answers(run: Run, path: Path) -> int:
    """Write all answers to a JSON file and return how many there are.

    Raises:
        WriteError: when the file cannot be written.
    """
    found = tuple(answers(run).values())
    remove_abandoned(path.parent)
    write_record(path, TaughtFile(1, found))
    return len(found)


def import_answers(run: Run, path: Path, images: Sequence[str], classes: Sequence[str]) -> int:
    """Add the answers of a JSON file, all or none, and return how many were new: those that the run has are left out.

    Args:
        run: the run that learns.
        path: a file that `export_answers` wrote.
        images: the ids of the run's training images.
        classes: the run's classes.

    Raises:
        RunError: when the file is missing or damaged, or names an image or a class that the run does not have.
    """
    given = read_record(path, TaughtFile, "export the answers again").answers
    known, names = set(images), set(classes)
    for row, answer in enumerate(given, 1):
        missing = [one.image for one in answer.places if one.image not in known]
        missing += [name for name in (answer.name, answer.tag) if name and name not in names]
        if missing:
            raise RunError(
                f"{path}, answer {row}: must name images and classes of {run.root}, found {missing[0]!r:.200}; import "
                "it into a run of the same data"
            )
    held = set(answers(run).values())
    questions = {one.question for one in held if one.question}
    new = [one for one in dict.fromkeys(given) if one not in held and one.question not in questions]
    with writing(run.taught_file):
        run.review.mkdir(parents=True, exist_ok=True)
    with _open(run) as database:
        return len(_insert(database, run, new))


def points_of(indices: Sequence[int], size: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """Return the middles of cells of a map of `size` (height, width), as shares of its width and height.

    >>> points_of([0, 7], (2, 4))
    ((0.125, 0.25), (0.875, 0.75))
    """
    h, w = size
    return tuple((round((i % w + 0.5) / w, 5), round((i // w + 0.5) / h, 5)) for i in indices)


def click_answer(sample_id: str, cells: Sequence[int], grid: tuple[int, int], name: str) -> Answer:
    """Return the answer of a click: a region of an image (cells of a map of `grid` height and width, the clicked one
    first) shows the class `name`, or background if it is empty."""
    places = (Places(sample_id, points_of(cells, grid)),)
    return Answer(kind="click", meaning="class" if name else "background", name=name, places=places, grid=grid)


def taught_digest(run: Run) -> str:
    """Return a digest of all answers that change the memory bank; empty if there are none."""
    lines = sorted(record_line(one) for one in answers(run).values() if one.teaches)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16] if lines else ""


def fixed_parts(run: Run, sample_id: str) -> dict[int, Answer]:
    """Return the clicks and strokes in an image by number, in the order in which they were made."""
    return _select(run, "select number, answer from answers where image = ? order by number", sample_id)


def marked_classes(run: Run, classes: Sequence[str]) -> dict[str, set[int]]:
    """Return the classes (ids) that a person marked with clicks and strokes, by image; class id i is `classes[i - 1]`.

    One that is not a tag of its image is a missing tag.
    """
    ids, found = {name: number for number, name in enumerate(classes, 1)}, dict[str, set[int]]()
    for one in _select(run, "select number, answer from answers where image is not null order by number").values():
        if one.image is not None and one.name in ids:
            found.setdefault(one.image, set()).add(ids[one.name])
    return found


def mask_digests(run: Run) -> dict[str, str]:
    """Return a short digest of all that a person did to an image's mask, by sample id: decisions, clicks, strokes."""
    found = decision_digests(run)
    parts: dict[str, list[str]] = {}
    for one in _select(run, "select number, answer from answers where image is not null order by number").values():
        if one.image is not None:
            parts.setdefault(one.image, []).append(record_line(one))
    for name, lines in parts.items():
        text = "".join([found.get(name, ""), *lines])
        found[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def check_taught(run: Run) -> None:
    """Check that the database of a run's answers, if there is one, is intact.

    Raises:
        RunError: when it is damaged.
    """
    if run.taught_file.exists():
        with _open(run) as database:
            found = database.execute("pragma quick_check").fetchall()
            if found != [("ok",)]:
                raise _damaged(run, found[0][0])
        answers(run)


def _insert(database: sqlite3.Connection, run: Run, given: Sequence[Answer]) -> list[int]:
    numbers = []
    try:
        with database:
            database.execute(_TABLE)
            for one in given:
                row = one.question or None, one.image, record_line(one).rstrip()
                done = database.execute("insert into answers (question, image, answer) values (?, ?, ?)", row)
                assert done.lastrowid is not None
                numbers.append(done.lastrowid)
    except sqlite3.IntegrityError as error:
        raise RunError(
            f"{run.taught_file}: each cluster must be named once, and this one was named already, perhaps in another "
            "window; undo that answer first"
        ) from error
    return numbers


def _select(run: Run, query: str, *values: str) -> dict[int, Answer]:
    if not run.taught_file.exists():
        return {}
    with _open(run) as database:
        if not database.execute("select 1 from sqlite_master").fetchone():
            return {}
        rows = database.execute(query, values).fetchall()
    return {number: _parsed(run, content) for number, content in rows}


def _parsed(run: Run, content: object) -> Answer:
    try:
        if not isinstance(content, str):
            raise ValueError("an answer must be text")
        return parse_record(content.encode(), Answer)
    except ValueError as error:
        raise _damaged(run, error) from error


def _open(run: Run) -> contextlib.AbstractContextManager[sqlite3.Connection]:
    return open_database(run.taught_file, _TABLE, functools.partial(_damaged, run))


def _damaged(run: Run, why: object) -> RunError:
    return RunError(f"{run.taught_file}: damaged ({why}); restore a copy, or delete it and lose all answers")
