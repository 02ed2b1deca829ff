"""Files that strangers may have made: no devices and pipes, and values fit for a message."""

import errno
import os
import reprlib
import tokenize
import zipfile
import zlib
from pathlib import Path

DAMAGED_ARRAY: tuple[type[Exception], ...] = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, OverflowError, RuntimeError, MemoryError, SyntaxError),
    *(NotImplementedError, RecursionError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What NumPy and zipfile raise on damaged arrays and archives: headers of arrays are read as Python."""

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxlist, _SHOWN.maxtuple, _SHOWN.maxdict = 3, 10, 10, 10
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200


def is_file(path: Path) -> bool:
    """Tell whether a path is a regular file; false also for names that no file can have."""
    # os.path, unlike Path, has an answer for names with zeros in them or too long ones.
    return os.path.isfile(path)


def require_regular(path: Path) -> None:
    """Check that a path is not a device, a pipe, a socket or a folder: reading those may never end.

    Raises:
        OSError: when it is one; nothing when there is nothing at all.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "is no regular file")


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
            raise ValueError(f"it has {size} bytes, expected at most {most}")
        return file.read()


def shown(value: object) -> str:
    """Return a value as a message can show it, whatever its length and depth."""
    try:
        return _SHOWN.repr(value)
    except ValueError:  # Python refuses to write numbers of thousands of digits
        return "an enormous number"
