"""Images that lie in remote storage or in archives, by fsspec: s3://, gs://, https://, zip://, ..."""

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
"""Files beyond this are not fetched: they would only fill the memory."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WILDCARDS = re.compile(r"[*?\[]")


def is_url(item: str | Path) -> bool:
    """Tell whether an image, folder or pattern is named by a URL."""
    return isinstance(item, str) and _URL.match(item) is not None


def local_path(item: str | Path) -> str:
    """Return the path that a file:// URL stands for, everything else as it is."""
    if isinstance(item, str) and re.match(r"file://", item, re.IGNORECASE) and "::" not in item:
        return str(LocalFileSystem._strip_protocol(item))
    return str(item)


def list_url(url: str) -> dict[str, PurePosixPath]:
    """Return the URLs of the files that a URL stands for, a file, a folder or a pattern, in the order of their paths.

    Each with its path below the folder, or below the part of the pattern before its first wildcard. A file that is
    named so has its name alone.

    Raises:
        DataError: when the storage cannot be reached or there is nothing, or a path leaves its folder by `..`.
    """
    storage, path = _asked(url, lambda: url_to_fs(url))
    root, files = _asked(url, lambda: _listed(storage, path))
    if not files:
        raise DataError(f"{url}: no such image, folder or pattern")
    _, chain, rest = url.partition("::")
    relative = {}
    for file in sorted(map(PurePosixPath, files)):
        below = file.relative_to(root)
        if ".." in below.parts:
            raise DataError(f"{url}: holds {str(file)!r}, whose mask would leave --out; rename or leave it out")
        relative[f"{storage.unstrip_protocol(file.as_posix())}{chain}{rest}"] = below
    return relative


def fetch_url(url: str) -> bytes:
    """Return the content of the file at a URL.

    Raises:
        DataError: when it cannot be had, or is larger than `MAX_BYTES`.
    """

    def read() -> bytes:
        with fsspec.open(url, "rb") as file:
            content: bytes = file.read(MAX_BYTES + 1)
            return content

    content = _asked(url, read)
    if len(content) > MAX_BYTES:
        raise DataError(f"{url}: too large, expected at most {MAX_BYTES >> 20} MB")
    return content


def _listed(storage: Any, path: str) -> tuple[PurePosixPath, list[str]]:
    """The folder that names are relative to, and the files."""
    if storage.isfile(path):
        return PurePosixPath(path).parent, [path]
    if storage.isdir(path):
        return PurePosixPath(path), storage.find(path)
    before = _WILDCARDS.split(path, maxsplit=1)[0]
    root = PurePosixPath(before[: before.rfind("/") + 1])
    entries = storage.glob(path) if before != path else []
    return root, [file for entry in entries for file in storage.find(entry)]


def _asked(url: str, what: Callable[[], T]) -> T:
    try:
        return what()
    except FileNotFoundError as error:
        raise DataError(f"{url}: no such file") from error
    except ImportError as error:
        raise DataError(f"{url}: needs another package ({error})") from error
    except Exception as error:  # every storage has errors of its own, which have nothing in common
        raise DataError(f"{url}: cannot be read ({type(error).__name__}: {str(error)[:300]})") from error
