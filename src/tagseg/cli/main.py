"""The entry point of the command line. Only this package prints."""

import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

from cyclopts.exceptions import CycloptsError
from rich.logging import RichHandler

from tagseg.cli import (  # noqa: F401  importing them registers their commands
    exchange,
    fit,
    maintain,
    predict,
    review,
    stages,
    start,
    study,
    teach,
)
from tagseg.cli.app import app, complain, err, out
from tagseg.cli.mistakes import mistake_text
from tagseg.system.process import launched, ran_out, said_by
from tagseg.system.signals import exit_status, raised
from tagseg.system.untrusted import printable

TOGETHER = ("fit", "train", "localise", "masks", "segment", "evaluate", "report", "bench")
"""The commands that processes launched together may run; each process would run any other by itself."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. Errors in the input go to standard error, with exit status 2.

    Ctrl-C and SIGTERM end it with status 130 and 143, and a line that says how to continue.
    """
    for name in ("stdout", "stderr"):  # None where the caller has closed it
        if getattr(sys, name) is None:
            setattr(sys, name, _Nowhere())
    handler = RichHandler(console=err, show_path=False, show_level=False, omit_repeated_times=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    arguments = sys.argv[1:] if argv is None else list(argv)
    handler.addFilter(partial(_is_shown, _take_verbose(arguments)))
    handler.addFilter(make_printable)
    handler.addFilter(_once())
    logging.getLogger("tagseg").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs retries; our own message follows
    number, count = launched()
    out.quiet = number > 0
    if count > 1:  # read when PyTorch is imported, later; hides its warnings about DDP
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        if count > 1 and arguments and arguments[0] not in TOGETHER:
            raise ValueError(
                f"tagseg {arguments[0]} runs in one process, {count} were launched; run it without accelerate launch"
            )
        with raised():
            app(arguments, exit_on_error=False, print_error=False)
    except KeyboardInterrupt as stopped:
        err.print("Interrupted. Run the same command again to continue.", style="yellow")
        raise SystemExit(exit_status(stopped)) from None
    except CycloptsError as mistake:
        complain(f"Error: {mistake_text(mistake)}", "red")
        raise SystemExit(2) from None
    except (ValueError, OSError) as error:
        complain(f"Error: {error_text(error)}", "red")
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        if not (cause := ran_out(error)):
            raise
        complain(f"Error: {_OUT_OF_MEMORY.format(cause=cause)}", "red")
        raise SystemExit(2) from None


class _Nowhere(io.TextIOBase):
    """Takes what is printed and keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


def error_text(error: ValueError | OSError) -> str:
    """Return an error's message, and for one of the system that says it not, what to do."""
    text = said_by(error)
    if len(text) > _LONGEST:  # names of files and classes may be of any length
        text = f"{text[: _LONGEST - 500]} [...] {text[-500:]}"
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"{text}: {_REMEDIES[error.errno]}"
    return text


_LONGEST = 4000
"""Characters of an error; a longer one would scroll away what it says."""


_OUT_OF_MEMORY = (
    "this process needs more memory or threads than it may have ({cause}); end other programs, raise the limits "
    "(ulimit -v, ulimit -u), or lower --workers, and run the same command again"
)

_REMEDIES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n), or lower --workers, and run the same command again",
    errno.ENFILE: "the system has too many open files; end other programs, and run the same command again",
    errno.ENOSPC: "free some space there (TMPDIR names the folder of temporary files, /dev/shm holds what processes "
    "share), and run the same command again",
    errno.EFBIG: "raise the limit (ulimit -f), and run the same command again",
    errno.ENOMEM: "end other programs, raise the limit of memory (ulimit -v), or lower --workers, and run the same "
    "command again",
    errno.EROFS: "make the file system writable, or choose another folder",
}


def make_printable(record: logging.LogRecord) -> bool:
    """Write out the control characters of a record of the log, and return that it is shown."""
    record.msg, record.args = printable(record.getMessage()), None
    return True


def _take_verbose(arguments: list[str]) -> bool:
    """Take -v out of the arguments, and tell whether it was there."""
    shown = any(flag in arguments for flag in _VERBOSE)
    arguments[:] = [argument for argument in arguments if argument not in _VERBOSE]
    return shown


def _once() -> Callable[[logging.LogRecord], bool]:
    """Return a filter that lets every warning pass once: each stage that opens a network says the same about it."""
    seen = set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno < logging.WARNING or text not in seen:
            seen.add(text)
            return True
        return False

    return is_new


def _is_shown(details: bool, record: logging.LogRecord) -> bool:
    """Tell whether a record is shown: what the parts that do the work log is, if it warns, or with `details`."""
    return details or record.levelno > logging.INFO or not f"{record.name}.".startswith(_WORKERS)


_VERBOSE = ("-v", "--verbose")

_WORKERS = tuple(
    f"tagseg.{part}."
    for part in ("training", "features", "rca", "segment", "masks.localise", "masks.make", "masks.foreign_maps")
)
"""Packages and modules whose log says what only an expert reads: losses, learning rates, precisions."""
