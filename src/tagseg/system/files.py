"""Atomic writing of files, and their checksums."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tagseg.errors import WriteError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".writing-"
"""Prefix of the names of files while they are written."""

_MADE = re.compile(rf"{re.escape(TEMPORARY)}[0-9a-f]{{16}}(\.\w+)?")
"""The names that `atomic_path` makes."""

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your disk quota is used up; free some space",
    errno.EFBIG: "it exceeds the largest size of a file (ulimit -f, or the file system's own); raise the limit",
    errno.EROFS: "the file system is read-only; make it writable",
    errno.EACCES: "there is no permission to write to the folder; change its permissions",
    errno.EPERM: "there is no permission to write to the folder; change its permissions",
}
"""Why a file cannot be written, and what to do about it."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part of it.

    Raises:
        WriteError: see `writing`.
    """
    with _renamed(path) as (_, file):
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file where a person asked for it: as `write_atomically`, and what killed commands left beside it goes.

    Raises:
        WriteError: see `writing`.
    """
    remove_abandoned(path.parent)
    write_atomically(path, content)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, with its suffix, and rename it to `path` when the block succeeds.

    Raises:
        WriteError: see `writing`.
    """
    with _renamed(path) as (temporary, _):
        yield temporary
        with temporary.open("rb") as file:  # the block may have replaced the one that was made here
            os.fsync(file.fileno())


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a new temporary file, its path and the file itself, that becomes `path` if the block succeeds and is
    deleted if it fails. As few operations as can be: each takes its time on a network share."""
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
    with writing(path), contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(_created(temporary))
            if fcntl is not None:
                with contextlib.suppress(OSError):  # network file systems without locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield temporary, file
            if fcntl is None:
                file.close()  # where there are no such locks, an open file cannot be renamed
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _created(path: Path) -> BinaryIO:
    """Open a new file, and make its folder if there is none."""
    # A plain `open` gives the file the permissions of the umask; "x" refuses a name that exists.
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def remove_abandoned(folder: Path, below: bool = False) -> None:
    """Delete the temporary files directly in a folder, or anywhere `below` it, that nobody is writing any more: their
    writers were killed."""
    if fcntl is None or not folder.is_dir():
        return
    for leftover in (folder.rglob if below else folder.glob)(f"{TEMPORARY}*"):
        if _MADE.fullmatch(leftover.name) and leftover.is_file() and not leftover.is_symlink():
            with contextlib.suppress(OSError), leftover.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its writer holds it
                leftover.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the file system in the block into one that names `path` and says what to do.

    Raises:
        WriteError: when the disk is full, or there is no permission to write to it.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno not in _CAUSES:
            raise
        raise WriteError(
            f"{path}: cannot be written: {_CAUSES[error.errno]} and run the same command again to continue"
        ) from error


def reserve(path: Path, size: int) -> None:
    """Reserve `size` bytes on the disk for a file that will be mapped into memory.

    Otherwise the process would crash when the disk gets full.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def remove_temporary(folder: Path, exact: bool = False) -> None:
    """Delete the temporary files of killed processes below a folder; no process may be writing there.

    With `exact`, only those whose whole name is as `atomic_path` makes it: other files may begin alike.
    """
    for leftover in folder.rglob(f"{TEMPORARY}*"):
        if not leftover.is_dir() and (not exact or _MADE.fullmatch(leftover.name)):
            leftover.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(path: Path) -> list[Path]:
    """Return the files at a path: the file itself, or all files below a folder in order, without temporary ones.

    If there is nothing at the path, the list is empty.
    """
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith(TEMPORARY))
    return [path] if path.exists() else []


def as_bytes(size: int) -> str:
    """Return a number of bytes in words: 6.2 GB, 340 MB, 20 kB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"
    return f"{size / 1e3:.0f} kB"
