"""Export folders: written completely or not at all, with images next to the masks, and JSON for other tools."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from tagseg._version import __version__
from tagseg.data.tars import is_member, open_file
from tagseg.errors import DataError
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track
from tagseg.system.records import json_text

Images = Literal["none", "copy", "link"]
"""Whether an export contains the images: no, as copies, or as links to the originals."""

_MARKER = "made_by_tagseg.json"


@contextlib.contextmanager
def whole_folder(out: Path, about: dict[str, Any], force: bool) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` if the block succeeds and is deleted if it fails.

    `about` is written into it as made_by_tagseg.json, which marks a folder that `force` may replace.

    Raises:
        DataError: when `out` exists and is not empty, unless it has that file and `force` is given.
    """
    out = out.resolve()  # through a link, the folder it points to is replaced
    require_replaceable(out, force)
    with replacing(out) as temporary:
        yield temporary
        write_atomically(temporary / _MARKER, json_text({"tagseg": __version__, **about}, 1))


def require_replaceable(out: Path, force: bool) -> None:
    """Raise DataError when `out` exists and is not empty, unless export or import made it and `force` is given."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / _MARKER).is_file():
            raise DataError(f"{out}: exists and was not made by export or import; choose another --out")
        if not force:
            raise DataError(f"{out}: exists; choose another --out or --force")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `folder` that takes its place if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".writing-{secrets.token_hex(8)}") for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def place_images(pairs: Iterable[tuple[Path, Path]], how: Images, total: int, track: Track) -> None:
    """Copy or link images, given as (source, target) pairs; do nothing for `none`.

    Raises:
        DataError: when an image inside a tar would have to be linked.
    """
    if how == "none":
        return
    for source, target in track(pairs, f"{how} images", total):
        target.parent.mkdir(parents=True, exist_ok=True)
        if how == "link":
            if is_member(source):
                raise DataError(f"--images link: cannot link to {source} inside a tar; expected copy or none")
            os.symlink(source.resolve(), target)
        else:
            with open_file(source) as file, target.open("wb") as copy:
                shutil.copyfileobj(file, copy)


def write_json_list(file: TextIO, items: Iterable[Any]) -> None:
    """Write a JSON list with one item per line, without holding the whole list in memory."""
    before = "[\n"
    for item in items:
        file.write(before + json_text(item))
        before = ",\n"
    file.write("]" if before != "[\n" else "[]")
