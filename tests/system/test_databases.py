import sqlite3
from pathlib import Path

import pytest

from tagseg.errors import RunError
from tagseg.system.databases import open_database

TABLE = "create table if not exists kept (id text primary key)"


def error(name: str) -> sqlite3.OperationalError:
    found = sqlite3.OperationalError("as SQLite says it")
    found.sqlite_errorname = name
    return found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SQLITE_FULL", "free some space on the disk"),
        ("SQLITE_READONLY_DIRECTORY", "make it writable"),
        ("SQLITE_CANTOPEN", "ulimit -n"),
        ("SQLITE_IOERR_WRITE", "ulimit -f"),
    ],
)
def test_an_error_of_the_database_says_what_to_do(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"kept\.sqlite: cannot be read or written \(as SQLite says it\); .*{said}"):  # noqa: SIM117
        with open_database(tmp_path / "kept.sqlite", TABLE, RunError):
            raise error(name)


def test_a_database_without_room_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"database or disk is full\); free some space"):  # noqa: SIM117
        with open_database(tmp_path / "kept.sqlite", TABLE, RunError) as database, database:
            database.execute("pragma max_page_count = 2")
            database.execute(TABLE)
            database.executemany("insert into kept values (?)", [("x" * 1000 + str(i),) for i in range(100)])
