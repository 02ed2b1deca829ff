"""Images in remote storage or in archives, through fsspec: s3://, gs://, https://, zip://, ..."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tagseg.errors import DataError

T = TypeVar("T")

MAX_BYTES = 1 << 29
"""Largest file that is fetched, so that a file of any size cannot fill the memory."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WILDCARDS = re.compile(r"[*?\[]")


def is_url(item: str | Path) -> bool:
    """Tell whether an image, folder or pattern is given as a URL."""
    return isinstance(item, str) and _URL.match(item) is not None


def local_path(item: str | Path) -> str:
    """Return the path in a file:// URL, and anything else unchanged."""
    if isinstance(item, str) and re.match(r"file://", item, re.IGNORECASE) and "::" not in item:
        return str(LocalFileSystem._strip_protocol(item))
    return str(item)


def list_url(url: str) -> dict[str, PurePosixPath]:
    """Return the files that a URL of a file, a folder or a pattern stands for, in the order of their paths.

    Maps the URL of each file to its path relative to the folder, or to the part of the pattern before its first
    wildcard; for a single file the path is its name.

    Raises:
        DataError: if the storage cannot be reached, nothing is found, or a path leaves its folder through `..`.
    """
    storage, path = _access(url, lambda: url_to_fs(url))
    root, files = _access(url, lambda: _listed(storage, path))
    if not files:
        raise DataError(f"{url}: no such image, folder or pattern")
    _, chain, rest = url.partition("::")
    relative = {}
    for file in sorted(map(PurePosixPath, files)):
        path_below = file.relative_to(root)
        if ".." in path_below.parts:
            raise DataError(
                f"{url}: has a file {str(file)!r}, whose mask would be written outside --out; rename it or leave it out"
            )
        relative[f"{storage.unstrip_protocol(file.as_posix())}{chain}{rest}"] = path_below
    return relative


def fetch_url(url: str) -> bytes:
    """Return the content of the file at a URL.

    Raises:
        DataError: if it cannot be read, or is larger than `MAX_BYTES`.
    """

    def read() -> bytes:
        with fsspec.open(url, "rb") as file:
            content: bytes = file.read(MAX_BYTES + 1)
            return content

    content = _access(url, read)
    if len(content) > MAX_BYTES:
        raise DataError(f"{url}: too large, expected at most {MAX_BYTES >> 20} MB")
    return content


def _listed(storage: Any, path: str) -> tuple[PurePosixPath, list[str]]:
    """Return the folder that names are relative to, and the files."""
    if storage.isfile(path):
        return PurePosixPath(path).parent, [path]
    if storage.isdir(path):
        return PurePosixPath(path), storage.find(path)
    before = _WILDCARDS.split(path, maxsplit=1)[0]
    root = PurePosixPath(before[: before.rfind("/") + 1])
    entries = storage.glob(path) if before != path else []
    return root, [file for entry in entries for file in storage.find(entry)]


def _access(url: str, action: Callable[[], T]) -> T:
    """Return the result of an action on a storage; its errors become one that names the URL."""
    try:
        return action()
    except FileNotFoundError as error:
        raise DataError(f"{url}: no such file") from error
    except ImportError as error:
        raise DataError(f"{url}: needs another package ({error})") from error
    except Exception as error:  # every storage has its own errors, without a common base class
        raise DataError(f"{url}: cannot be read ({type(error).__name__}: {str(error)[:300]})") from error
