"""Safe reading of untrusted files: no devices or pipes, no endless nesting of JSON, short values in messages."""

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
"""Errors that NumPy and zipfile raise on damaged arrays and archives: NumPy parses an array's header as Python."""

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


def read_json(path: Path) -> Any:
    """Return the content of a JSON file in UTF-8.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is not JSON, or nests too deep.
    """
    return parse_json(read_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; bytes are decoded as UTF-8, with or without a byte order mark.

    Raises:
        ValueError: when it is not JSON, or nests too deep.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("nests too deep") from error


def shown(value: object) -> str:
    """Return a value as text that is short enough for a message, whatever its length and depth."""
    try:
        return _SHOWN.repr(value)
    except ValueError:  # Python refuses to write numbers of thousands of digits
        return "an enormous number"


def check_shape(value: object, shape: Any, at: str = "") -> None:
    """Check that a value read from JSON has the expected shape.

    Args:
        value: the value.
        shape: `str`, `int` (not bool), `float` (any finite number), `bool`, `dict` or None; `[shape]`, a list of values
            of that shape; a dict of the required keys, where a key that ends in `?` is optional; a tuple of
            alternatives.
        at: the value's place in the file.

    Raises:
        ValueError: naming the place, the value found and what was expected.
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
    except OverflowError:  # a whole number larger than any float
        return False


def _expected(shape: Any) -> str:
    if isinstance(shape, list):
        return "a list"
    return "nothing" if shape is None else _NAMES[dict if isinstance(shape, dict) else shape]
