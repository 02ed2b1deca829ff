"""Changes of several files of a folder that count together, wherever the process ends.

New files are written aside, into the hidden folder `.writing-change`. Then one rename puts a list in place,
`.change.json`, of what is to be moved to its place and what is to be deleted: from that moment on the change counts.
The next command, of whatever kind, finishes a change that counts and deletes what was written aside for one that does
not (`settle`). Only who holds the lock of the folder may change it or settle it (see tagseg.run.lock).
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tagseg.errors import RunError
from tagseg.system.files import TEMPORARY, write_atomically, writing
from tagseg.system.records import Record, read_record, record_text

ASIDE = f"{TEMPORARY}change"
"""The folder, inside the one that is changed, where new files wait."""

CHANGE = ".change.json"
"""The file that makes a change count, and lists it."""

LONGEST_NAME = 255
"""Bytes in the name of a file or folder, on nearly every file system."""

_OF_NAMES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENOTEMPTY, errno.EEXIST}
"""Errors of the file system that only names of a spoiled list can cause."""


class FolderChange(Record, frozen=True, omit_defaults=True):
    """.change.json. Paths are relative to the folder, with slashes.

    by: which command and request began it. moved: files and folders that wait aside. gone: those to be deleted.
    """

    by: str = ""
    moved: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*self.moved, *self.gone):
            parts = PurePosixPath(name).parts
            if max((len(os.fsencode(part)) for part in parts), default=0) > LONGEST_NAME:
                raise ValueError(f"must list names of at most {LONGEST_NAME} bytes, found {name!r:.100}")
            if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
                raise ValueError(f"must list paths inside the folder, found {name!r:.100}")


@dataclass
class Draft:
    """A change that does not count yet: the folder, where its new files are written, and what will be deleted."""

    folder: Path
    gone: list[str] = field(default_factory=list)

    @property
    def aside(self) -> Path:
        return self.folder / ASIDE

    def write(self, name: str, content: str | bytes) -> None:
        """Write the new content of a file, given by its path relative to the folder.

        Raises:
            WriteError: when it cannot be written.
        """
        write_atomically(self.aside / name, content)

    def newest(self, name: str) -> Path:
        """Return where a file's new content is, or the file itself if the change does not write it."""
        new = self.aside / name
        return new if new.exists() else self.folder / name


@contextlib.contextmanager
def changing(folder: Path, by: str = "") -> Iterator[Draft]:
    """Yield a draft whose files and deletions count together if the block succeeds, and not at all if it fails.

    Raises:
        WriteError: when the folder cannot be written to.
    """
    settle(folder)
    draft, counts = Draft(folder), False
    try:
        with writing(draft.aside):
            draft.aside.mkdir(parents=True)
        yield draft
        gone = tuple(dict.fromkeys(draft.gone))
        moved = tuple(_moves(draft.aside, folder, frozenset(gone)))
        if moved or gone:
            _list(folder, FolderChange(by, moved, gone))
            counts = True
    finally:
        if not counts:
            shutil.rmtree(draft.aside, ignore_errors=True)
    settle(folder)


def settle(folder: Path) -> str:
    """Finish the change of a folder that a killed command left counting, or delete what it wrote aside; return which
    request began it, empty if there was none. What a request has begun (see `begin`) is left to it.

    Raises:
        RunError: when the list of the change is damaged, or leads outside the folder.
        WriteError: when the folder cannot be written to.
    """
    change = pending(folder)
    if change is None or not is_unsettled(folder):
        if (folder / ASIDE).is_dir():
            with writing(folder / ASIDE):
                shutil.rmtree(folder / ASIDE)
        return "" if change is None else change.by
    with writing(folder / CHANGE), _sound_list(folder / CHANGE):
        for name in (*change.gone, *change.moved):
            if not (folder / name).parent.resolve().is_relative_to(folder.resolve()):
                raise RunError(f"{folder / CHANGE}: {name[:200]} leads outside the folder; delete this file")
        waiting = {name for name in change.moved if os.path.lexists(folder / ASIDE / name)}
        for name in change.gone:
            if name in waiting or name not in change.moved:  # what was moved there already is new
                _delete(folder / name)
        for name in change.moved:
            if name in waiting:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / ASIDE / name).replace(folder / name)
        if (folder / ASIDE).exists():
            shutil.rmtree(folder / ASIDE)
        (folder / CHANGE).unlink()
    return change.by


@contextlib.contextmanager
def _sound_list(file: Path) -> Iterator[None]:
    """Turn an error that only names of a spoiled list can cause into one in words."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_NAMES:
            raise
        raise RunError(
            f"{file}: lists what cannot be moved or deleted ({error}); delete this file; `tagseg doctor` then says "
            "what to repeat"
        ) from error


def pending(folder: Path) -> FolderChange | None:
    """Return the change of a folder that counts and is not finished, None if there is none.

    Raises:
        RunError: when its list is damaged.
    """
    file = folder / CHANGE
    if not os.path.lexists(file):
        return None
    return read_record(file, FolderChange, "delete it; `tagseg doctor` then says what to repeat")


def is_unsettled(folder: Path) -> bool:
    """Tell whether a change of a folder counts and is not in place: what the folder holds now says nothing.

    Raises:
        RunError: when the list of the change is damaged.
    """
    change = pending(folder) if folder.is_dir() else None
    return change is not None and bool(change.moved or change.gone)


def begin(folder: Path, by: str) -> None:
    """Record that a request writes its files into a folder one by one: until `end`, the same request
    continues it.

    Raises:
        WriteError: when the folder cannot be written to.
    """
    _list(folder, FolderChange(by))
    with writing(folder / ASIDE):
        shutil.rmtree(folder / ASIDE)


def end(folder: Path) -> None:
    """Record that the request that has begun is done.

    Raises:
        WriteError: when the folder cannot be written to.
    """
    with writing(folder / CHANGE):
        (folder / CHANGE).unlink(missing_ok=True)


def is_own(name: str) -> bool:
    """Tell whether a file or folder of this name, directly in a folder, belongs to a change of it."""
    return name == CHANGE or name.startswith(TEMPORARY)


def _list(folder: Path, change: FolderChange) -> None:
    """Put the list of a change in place. It is written aside, too: what a kill leaves of it is deleted then."""
    write_atomically(folder / ASIDE / CHANGE, record_text(change))
    with writing(folder / CHANGE):
        (folder / ASIDE / CHANGE).replace(folder / CHANGE)


def _moves(aside: Path, folder: Path, gone: frozenset[str], below: str = "") -> Iterator[str]:
    """Yield what is to be moved: whole folders where there is none yet, or where the old one is deleted."""
    for entry in sorted((aside / below).iterdir()):
        name = f"{below}{entry.name}"
        target = folder / name
        if entry.is_dir() and not entry.is_symlink() and target.is_dir() and name not in gone:
            yield from _moves(aside, folder, gone, f"{name}/")
        else:
            yield name


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
