"""A lock on a folder, so that one process at a time writes to it; it ends with its process, even a killed one."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tagseg.errors import RunError
from tagseg.run.folder import LOCK
from tagseg.run.open import is_blank
from tagseg.system.changes import is_own, settle
from tagseg.system.files import remove_abandoned, writing

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

PATIENCE_S = 15.0
"""Seconds to wait for a lock: the worker processes of a killed run hold it until they notice its end."""


@contextlib.contextmanager
def hold_lock(root: Path) -> Iterator[str]:
    """Do what `hold_folder` does for the run folder `root`; a folder that cannot become one is left alone."""
    if not _may_be_run(root):  # opening it reports that it is not a run folder
        yield ""
        return
    with hold_folder(root) as finished:
        yield finished


@contextlib.contextmanager
def hold_folder(root: Path) -> Iterator[str]:
    """Keep other processes from writing to a folder in the block; create the folder if it is missing. A change that a
    killed command left is finished or undone first; yields which request began a finished one (see `settle`).

    Worker processes hold the lock too (see `share_lock`), so that those of a killed run do not write into the next one.
    A killed process leaves the lock's file, but the file locks nothing then.

    Raises:
        RunError: when another process is writing to the folder, or the lock's file is a link.
        WriteError: when the folder cannot be written to.
    """
    if fcntl is None:
        yield settle(root)
        return
    made = not root.exists()
    file = _take(root)
    try:
        remove_abandoned(root)
        yield settle(root)
    finally:
        (root / LOCK).unlink(missing_ok=True)
        os.close(file)
        if made:
            with contextlib.suppress(OSError):  # removes it only if it is still empty
                root.rmdir()


def own_files(folder: Path) -> list[str]:
    """Return the names of the files and folders in a folder, without those of its lock and of a change of it."""
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK and not is_own(path.name))


@contextlib.contextmanager
def share_lock(root: Path) -> Iterator[None]:
    """Hold the lock together with the main process of this worker in the block."""
    file = None
    if fcntl is not None:
        with contextlib.suppress(OSError):  # without a main process, or on a system without locks, there is none
            file = os.open(root / LOCK, os.O_RDONLY)
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    try:
        yield
    finally:
        if file is not None:
            os.close(file)


def _may_be_run(root: Path) -> bool:
    if not root.exists():
        return True
    return root.is_dir() and ((root / "manifest.json").exists() or is_blank(root))


def _take(root: Path) -> int:
    """Return the lock's open file, locked: exclusively at first, then shared, so that workers can join."""
    path, deadline, waited = root / LOCK, time.monotonic() + PATIENCE_S, False
    while True:
        if path.is_symlink():  # its target would be overwritten
            raise RunError(f"{path}: must be a file that tagseg made, found a link; remove it")
        with writing(path):
            root.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have removed the file since it was opened here.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                _sign(file)
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return file
        except BlockingIOError:
            holder = os.pread(file, 300, 0).decode(errors="replace") or "not yet named"
            if time.monotonic() > deadline:
                os.close(file)
                raise RunError(
                    f"{root}: another tagseg command is writing to it ({holder}); wait until it ends, stop it, or "
                    "choose another folder"
                ) from None
            if not waited:
                log.info(
                    "%s: another tagseg command is writing to it (%s); waiting up to %g s", root, holder, PATIENCE_S
                )
            waited = True
            time.sleep(0.1)
        except OSError as error:  # some network file systems have no locks
            log.warning("%s: cannot be locked (%s); run only one tagseg command on it at a time", root, error.strerror)
            return file
        os.close(file)


def _sign(file: int) -> None:
    with contextlib.suppress(OSError):  # on a full disk the holder stays unnamed
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
