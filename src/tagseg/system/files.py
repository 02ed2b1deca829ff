"""Files that get there whole or not at all, and their checksums."""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from tagseg.errors import WriteError

TEMPORARY = ".writing-"
"""How the names begin that files have while they are written."""

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your share of the disk is used up (quota); free some space",
    errno.EFBIG: "a file may not get that large here (ulimit -f, or the file system); allow more",
    errno.EROFS: "the file system is read-only; make it writable",
    errno.EACCES: "the folder may not be written to; change its permissions",
    errno.EPERM: "the folder may not be written to; change its permissions",
}
"""What keeps a file from being written, and what can be done about it."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    Raises:
        WriteError: as `writing`.
    """
    with atomic_path(path) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix) that is renamed to `path` when the block succeeds.

    Raises:
        WriteError: as `writing`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
        # As a plain `open` makes it, with the permissions of the umask; only its name must be new.
        temporary.open("xb").close()
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let an error of the system within the block name `path` and say what to do: a full disk does not say which file.

    Raises:
        WriteError: when the disk is full or may not be written to.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno not in _CAUSES:
            raise
        raise WriteError(
            f"{path}: cannot be written, {_CAUSES[error.errno]} and run the same command again to continue"
        ) from error


def reserve(path: Path, size: int) -> None:
    """Have the disk set `size` bytes aside for a file: one that is mapped into memory meets a full disk as a crash."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def remove_temporary(folder: Path) -> None:
    """Delete what a killed process was about to write below a folder; none may be at work there."""
    for leftover in folder.rglob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(path: Path) -> list[Path]:
    """Return the file itself, or all files below a folder in order, without temporary ones; none where nothing is."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith(TEMPORARY))
    return [path] if path.exists() else []
