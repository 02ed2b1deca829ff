"""A folder that is there whole or not at all, images beside masks, and JSON too long to be held in memory."""

import contextlib
import json
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

Images = Literal["none", "copy", "link"]
"""Whether images lie beside their masks: not, as copies, or as links to where they are."""

_MADE = "made_by_tagseg.json"


@contextlib.contextmanager
def whole_folder(out: Path, about: dict[str, Any], force: bool) -> Iterator[Path]:
    """Yield a folder that becomes `out` when the block succeeds, and is gone when it does not; `about` says in it what
    it is.

    Raises:
        DataError: when `out` holds something, unless it was made so before and `force` is given: then it is replaced.
    """
    out = out.resolve()  # of a link, the folder that it means is replaced
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / _MADE).is_file():
            raise DataError(f"{out}: exists, and is no folder that export or import made; choose another --out")
        if not force:
            raise DataError(f"{out}: exists; choose another --out or --force")
    with replacing(out) as temporary:
        yield temporary
        write_atomically(temporary / _MADE, json.dumps({"tagseg": __version__, **about}, indent=1, ensure_ascii=False))


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that takes its place when the block succeeds."""
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
    """Copy or link images (file, place), or leave them where they are.

    Raises:
        DataError: when an image that lies in a tar is to be linked.
    """
    if how == "none":
        return
    for source, target in track(pairs, f"{how} images", total):
        target.parent.mkdir(parents=True, exist_ok=True)
        if how == "link":
            if is_member(source):
                raise DataError(f"--images link: {source} lies in a tar, where no link leads; expected copy or none")
            os.symlink(source.resolve(), target)
        else:
            with open_file(source) as file, target.open("wb") as copy:
                shutil.copyfileobj(file, copy)


def write_json_list(file: TextIO, items: Iterable[Any]) -> None:
    """Write a JSON list, an item a line, one at a time."""
    before = "[\n"
    for item in items:
        file.write(before + json.dumps(item, ensure_ascii=False))
        before = ",\n"
    file.write("]" if before != "[\n" else "[]")
