"""Safe reading of untrusted files: no devices or pipes, short values in messages."""

import errno
import os
import re
import reprlib
import tokenize
import zipfile
import zlib
from pathlib import Path

DAMAGED_ARRAY: tuple[type[Exception], ...] = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, OverflowError, RuntimeError, MemoryError, SyntaxError),
    *(NotImplementedError, RecursionError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""Errors that NumPy and zipfile raise on damaged arrays and archives: NumPy parses an array's header as Python."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, but for tab and line feed, and those that turn the direction of text."""

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxlist, _SHOWN.maxtuple, _SHOWN.maxdict = 3, 10, 10, 10
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200


def is_file(path: Path) -> bool:
    """Tell whether a path is a regular file; False also for names that no file can have."""
    # os.path, unlike Path, returns False for names that contain a zero byte or are too long.
    return os.path.isfile(path)


def require_regular(path: Path) -> None:
    """Check that a path, if it exists, is not a device, pipe, socket or folder: reading one may never end.

    Raises:
        OSError: when it is one.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "not a regular file")


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is larger.
    """
    require_regular(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise ValueError(f"size is {size} bytes, expected at most {most}")
        return file.read()


def printable(text: str) -> str:
    r"""Return text with its control characters written out: in a terminal they could move the cursor, change what was
    printed, or type. File names and classes may hold any.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shown(value: object) -> str:
    """Return a value as text that is short enough for a message, whatever its length and depth."""
    try:
        return _SHOWN.repr(value)
    except ValueError:  # Python refuses to write numbers of thousands of digits
        return "an enormous number"
