"""SQLite databases of a run folder. A stranger may have written one: nothing in it but our own tables is accepted."""

import contextlib
import functools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from tagseg.errors import RunError
from tagseg.system.untrusted import require_regular


@contextlib.contextmanager
def open_database(path: Path, table: str, damaged: Callable[[object], RunError]) -> Iterator[sqlite3.Connection]:
    """Open a database that holds nothing yet, or the table that the statement `table` creates and nothing else.

    Raises:
        RunError: when it cannot be read or written; the error of `damaged` when it holds something else.
    """
    try:
        require_regular(path)
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
            # An untrusted database may contain SQL (views, triggers, computed columns): it is never run.
            database.execute("pragma trusted_schema = off")
            if _schema(database) not in ([], _own_schema(table)):
                raise damaged("its tables are not those of tagseg")
            yield database
    except (OSError, sqlite3.Error) as error:
        remedy = next((said for name, said in _REMEDIES.items() if name in getattr(error, "sqlite_errorname", "")), "")
        raise RunError(f"{path}: cannot be read or written ({error}){remedy}") from error


_REMEDIES = {
    "FULL": "; free some space on the disk, or raise the limit (ulimit -f), and repeat this",
    "READONLY": "; make it writable, or copy the run to a folder that is, and repeat this",
    "CANTOPEN": "; make its folder writable, or raise the limit of open files (ulimit -n), and repeat this",
    "IOERR": "; free some space on the disk, or raise the limit (ulimit -f), and repeat this",
    "NOMEM": "; end other programs, or raise the limit of memory (ulimit -v), and repeat this",
    "BUSY": "; another program is writing to it: end it, and repeat this",
}
"""What to do, by a word in SQLite's name of an error."""


def _schema(database: sqlite3.Connection) -> list[tuple[object, ...]]:
    return database.execute("select type, name, tbl_name, sql from sqlite_master order by name").fetchall()


@functools.cache
def _own_schema(table: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute(table)
        return _schema(database)
