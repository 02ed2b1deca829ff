"""One process at a time writes into a run folder: a lock that ends with whoever holds it, however that ends."""

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
from tagseg.system.files import writing

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes apart there
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

PATIENCE_S = 15.0
"""Seconds to wait for a lock: the worker processes of a killed run hold it until they have noticed."""


@contextlib.contextmanager
def hold_lock(root: Path) -> Iterator[None]:
    """Keep other processes from writing into the run folder `root` within the block; it is made where it is missing.

    The worker processes hold the lock too (see `share_lock`), so that none of a killed run writes among the files of
    the next one. A process that was killed leaves the lock's file behind, but it locks nothing then.

    Raises:
        RunError: when another process is at work there.
        WriteError: when the folder cannot be written to.
    """
    if fcntl is None or not _may_be_run(root):  # what is no run folder is refused by whoever opens it
        yield
        return
    made = not root.exists()
    file = _take(root)
    try:
        yield
    finally:
        (root / LOCK).unlink(missing_ok=True)
        os.close(file)
        if made:
            with contextlib.suppress(OSError):  # nothing came of it, or there is something in it now
                root.rmdir()


@contextlib.contextmanager
def share_lock(root: Path) -> Iterator[None]:
    """Hold the lock together with the process that this one works for, within the block."""
    file = None
    if fcntl is not None:
        with contextlib.suppress(OSError):  # made by hand, in a test or on a system without: there is no lock
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
    """The lock's open file, locked: at first alone, then shared, so that workers can join."""
    path, deadline, waited = root / LOCK, time.monotonic() + PATIENCE_S, False
    while True:
        with writing(path):
            root.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file since it was opened here.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                _sign(file)
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return file
        except BlockingIOError:
            holder = os.pread(file, 300, 0).decode(errors="replace") or "no name yet"
            if time.monotonic() > deadline:
                os.close(file)
                raise RunError(
                    f"{root}: another tagseg is at work on it ({holder}); let it finish or end it, or choose another "
                    "folder"
                ) from None
            if not waited:
                log.info("%s: another tagseg is at work on it (%s); waiting %g s for it", root, holder, PATIENCE_S)
            waited = True
            time.sleep(0.1)
        except OSError as error:  # some network file systems have no locks
            log.warning("%s: cannot be locked (%s): let one tagseg at a time work on it", root, error.strerror)
            return file
        os.close(file)


def _sign(file: int) -> None:
    with contextlib.suppress(OSError):  # on a full disk nobody is told who holds it
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
