"""Files that strangers may have made: no devices and pipes, JSON without surprises, values fit for a message."""

import errno
import json
import math
import os
import reprlib
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

DAMAGED_ARRAY: tuple[type[Exception], ...] = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, OverflowError, RuntimeError, MemoryError, SyntaxError),
    *(NotImplementedError, RecursionError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What NumPy and zipfile raise on damaged arrays and archives: headers of arrays are read as Python."""

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxlist, _SHOWN.maxtuple, _SHOWN.maxdict = 3, 10, 10, 10
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200

_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


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


def read_json(path: Path) -> Any:
    """Return what a JSON file in UTF-8 holds.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it holds no JSON, or nests absurdly deep.
    """
    return parse_json(read_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text (as bytes: in UTF-8, with or without a byte order mark) says.

    Raises:
        ValueError: when it is no JSON, or nests absurdly deep.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("nests too deep") from error


def shown(value: object) -> str:
    """Return a value as a message can show it, whatever its length and depth."""
    try:
        return _SHOWN.repr(value)
    except ValueError:  # Python refuses to write numbers of thousands of digits
        return "an enormous number"


def check_shape(value: object, shape: Any, at: str = "") -> None:
    """Check a value that was read from JSON against what it must look like.

    Args:
        value: the value.
        shape: `str`, `int` (no bool), `float` (any finite number), `bool`, `dict`, None; `[shape]`, a list of such; a
            dict of the keys that must be there, those with `?` behind their name may be missing; a tuple of
            alternatives.
        at: where in the file the value is.

    Raises:
        ValueError: saying where, what came and what was expected.
    """
    if isinstance(shape, tuple):
        if not any(_fits(value, one) for one in shape[:-1]):
            check_shape(value, shape[-1], at)
    elif isinstance(shape, list) and isinstance(value, list):
        for i, part in enumerate(value):
            check_shape(part, shape[0], f"{at}[{i}]")
    elif isinstance(shape, dict) and isinstance(value, dict):
        for key, part in shape.items():
            name = key.removesuffix("?")
            if name in value:
                check_shape(value[name], part, f"{at}.{name}".lstrip("."))
            elif name == key:
                raise ValueError(f"{f'{at}.{name}'.lstrip('.')} is missing")
    elif not _is(value, shape):
        raise ValueError(f"{at or 'the file'} is {shown(value)}, expected {_expected(shape)}")


def _fits(value: object, shape: Any) -> bool:
    try:
        check_shape(value, shape)
    except ValueError:
        return False
    return True


def _is(value: object, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if kind is None or isinstance(kind, list | dict):
        return kind is value
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _expected(shape: Any) -> str:
    if isinstance(shape, list):
        return "a list"
    return "nothing" if shape is None else _NAMES[dict if isinstance(shape, dict) else shape]
