"""What is in a data folder but not used: files of operating systems and tools, and the record of what is ignored."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tagseg.data.records import Ignored

_LISTED = 3
"""A record names at most this many files."""

JUNK_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"}
    | {"__pycache__", "thumbnails.lrdata"}
)
"""Folders that macOS, Windows, network storage and tools leave behind, in lower case; names with a dot are others."""

JUNK_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
"""Files that operating systems leave behind, in lower case; names that start with a dot are others."""

JUNK = "files of an operating system or tool are skipped"


def is_junk(name: str) -> bool:
    """Tell whether the name of a file or folder is one that an operating system or tool leaves behind, or hidden."""
    lower = name.lower()
    return lower.startswith((".", "synophoto_thumb")) or lower in JUNK_FOLDERS or lower in JUNK_FILES


def walk(top: Path, junk: list[str] | None = None, skip: Iterable[Path] = ()) -> Iterator[str]:
    """Yield all files below a folder except junk, whose paths are appended to `junk`, and except the folders `skip`.

    Files come in the order of their paths. Links to folders are not followed, except `top` itself.
    """
    left_out = frozenset(os.fspath(folder) for folder in skip)
    yield from _walk(os.fspath(top), junk, left_out)


def _walk(folder: str, junk: list[str] | None, skip: frozenset[str]) -> Iterator[str]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        below = entry.is_dir(follow_symlinks=False)
        if is_junk(entry.name):
            if junk is not None and entry.name != ".git":
                junk.extend(_all_files(entry.path) if below else [entry.path])
        elif below:
            if entry.path not in skip:
                yield from _walk(entry.path, junk, skip)
        elif entry.is_file():
            yield entry.path


def _all_files(folder: str) -> Iterator[str]:
    for inner, _, files in os.walk(folder):
        yield from (os.path.join(inner, name) for name in files)


def ignored(root: Path, reason: str, paths: Sequence[object], expected: bool = False) -> tuple[Ignored, ...]:
    """Return the record of things that are ignored for one `reason`; nothing if there are none.

    `paths` are paths, shown relative to `root`, or names.
    """
    if not paths:
        return ()
    first = tuple(os.fspath(path).removeprefix(f"{root}{os.sep}") if isinstance(path, str | Path) else str(path)
                  for path in paths[:_LISTED])  # fmt: skip
    return (Ignored(reason, len(paths), first, expected),)
