"""Export folders: written completely or not at all, with images next to the masks, and JSON for other tools."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from tagseg._version import __version__
from tagseg.data.tars import is_member, open_file
from tagseg.errors import DataError
from tagseg.run.lock import hold_folder, own_files
from tagseg.system.changes import changing, is_unsettled
from tagseg.system.files import write_atomically, writing
from tagseg.system.progress import Track
from tagseg.system.records import json_text

Images = Literal["none", "copy", "link"]
"""Whether an export contains the images: no, as copies, or as links to the originals."""

_MARKER = "made_by_tagseg.json"


@contextlib.contextmanager
def whole_folder(out: Path, about: dict[str, Any], force: bool) -> Iterator[Path]:
    """Yield a folder inside `out` whose content becomes that of `out` if the block succeeds and is deleted if it fails.

    `about` is written into it as made_by_tagseg.json, which marks a folder that `force` may replace.

    Raises:
        DataError: when `out` exists and is not empty, unless it has that file and `force` is given.
        RunError: when another command is writing to `out`.
    """
    with replacing(out, json_text(about), lambda finished: require_replaceable(out, force or finished)) as temporary:
        yield temporary
        write_atomically(temporary / _MARKER, json_text({"tagseg": __version__, **about}, 1))


def require_replaceable(out: Path, force: bool) -> None:
    """Raise DataError when `out` exists and is not empty, unless export or import made it and `force` is given."""
    if is_unsettled(out):  # the command that holds the lock decides, once the change is in place
        return
    if out.exists() and (not out.is_dir() or own_files(out)):
        if not (out / _MARKER).is_file():
            raise DataError(f"{out}: exists and was not made by export or import; choose another --out")
        if not force:
            raise DataError(f"{out}: exists; choose another --out or --force")


@contextlib.contextmanager
def replacing(folder: Path, by: str = "", check: Callable[[bool], None] = lambda finished: None) -> Iterator[Path]:
    """Yield a folder inside `folder` whose content takes the place of all that `folder` holds if the block succeeds.

    `by` says what is written, and from what. `check` is called first, and raises if the folder may not be replaced; it
    is told whether a killed command of the same words had written all, which was put in place just now.
    """
    folder = folder.resolve()  # through a link, the folder it points to is replaced
    check(False)  # before a file of ours is in it
    with hold_folder(folder) as finished:
        check(bool(by) and finished == by)
        with changing(folder, by) as draft:
            yield draft.aside
            draft.gone += own_files(folder)


def place_images(pairs: Iterable[tuple[Path, Path]], how: Images, total: int, track: Track) -> None:
    """Copy or link images, given as (source, target) pairs; do nothing for `none`.

    Raises:
        DataError: when an image inside a tar would have to be linked.
        WriteError: when the disk is full, or there is no permission to write.
    """
    if how == "none":
        return
    for source, target in track(pairs, f"{how} images", total):
        if how == "link" and is_member(source):
            raise DataError(f"--images link: cannot link to {source} inside a tar; expected copy or none")
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if how == "link":
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
