"""Find the images that tag files name, however tools and people wrote the names."""

import ntpath
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tagseg.data.ignored import walk
from tagseg.data.images import IMAGE_SUFFIXES, inside
from tagseg.errors import DataError

_LISTED = 10
"""A message names at most this many images."""

_UPLOAD = re.compile(r"[0-9a-f]{4,12}-(?=.)")
"""What Label Studio puts in front of the name of an uploaded file."""

_UPLOADED = "\0"
"""Before the names in the index that are as Label Studio stores uploaded files."""

_LOCAL_FILE = re.compile(r"(?:^|&)d=([^&]+)")
"""Where the address of a file in Label Studio's local storage holds its path."""

_ROBOFLOW = re.compile(r"(.+)_(\w+)\.rf\.\w{20,}$")
"""Roboflow makes NAME_jpg.rf.HASH.jpg of NAME.jpg; this is the part before the suffix."""


class Sought(NamedTuple):
    """An image to find: its name in a file, the folders to look in, and the place that names it (for messages)."""

    name: str
    folders: Sequence[Path]
    where: str


def locate(root: Path, wanted: Sequence[Sought]) -> list[Path | None]:
    """Return the path of each image, or None where there is none.

    A name may lack its suffix, be absolute, have backslashes, escapes of a URL, another case or decomposed Unicode, or
    the prefix and query that Label Studio adds. A name with folders never means an image in other folders.

    Raises:
        DataError: when a name leads out of `root` because of `..` or a link, or has two meanings.
    """
    found = [_direct(root, one) for one in wanted]
    if None not in found:
        return found
    index = _index(root)
    return [path or _by_spelling(root, index, one) for path, one in zip(found, wanted, strict=True)]


def refuse_missing(wanted: Iterable[Sought]) -> None:
    """Raise DataError with all images that were not found, if there are any."""
    missing = list(wanted)
    if not missing:
        return
    first = missing[0]
    served = first.name.startswith(("/data/upload/", "/data/local-files/"))  # Label Studio's addresses
    if _is_absolute(first.name.replace("\\", "/")) and "://" not in first.name and not served:
        raise DataError(f"{first.where}: image {first.name!r} leaves the data folder, expected a path inside it")
    looked = " and ".join(dict.fromkeys(str(folder) for folder in first.folders))
    names = ", ".join(one.name for one in missing[1:_LISTED])
    more = f"; {len(missing)} images are missing, also {names}" if names else ""
    dots = ", ..." if len(missing) > _LISTED else ""
    raise DataError(f"{first.where}: image {first.name!r} is missing; looked in {looked}{more}{dots}")


def find_image(root: Path, folders: Sequence[Path], name: str, where: str) -> Path:
    """Return the path of one image as `locate` does for many.

    Raises:
        DataError: as for `locate`, and when it is missing.
    """
    wanted = Sought(name, folders, where)
    (path,) = locate(root, [wanted])
    if path is None:
        refuse_missing([wanted])
        raise AssertionError("unreachable")
    return path


def spellings(name: str) -> list[str]:
    """Return how the image of a tool's `name` may be called in the data set: as it is, then without what tools add.

    These are the rest of an address, percent signs, and the prefixes and suffixes of Label Studio and Roboflow.
    """
    plain = unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))
    path = plain
    if "://" in plain or "?" in plain:
        try:
            parts = urlsplit(plain)
            local = _LOCAL_FILE.search(parts.query)
            path = local[1] if local else parts.path
        except ValueError:  # an address with a wrong host
            path = plain.partition("?")[0]
    decoded = unicodedata.normalize("NFC", unquote(path).replace("\\", "/"))
    folder, slash, last = decoded.rpartition("/")
    own = _UPLOAD.sub("", last, count=1)
    before = _ROBOFLOW.match(bare_name(own))
    original = f"{before[1]}.{before[2]}" if before else own
    return list(dict.fromkeys([plain, path, decoded, folder + slash + own, folder + slash + original]))


def bare_name(name: str) -> str:
    """Return a name without the suffix of an image, if it has one."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name


def _direct(root: Path, one: Sought) -> Path | None:
    """Return the image that a name means as it is written, or None."""
    name = one.name.replace("\\", "/")
    pure = PurePosixPath(name)
    if _is_absolute(name):
        if not name.startswith(f"{root}/"):
            return None
        name = name.removeprefix(f"{root}/")
        pure = PurePosixPath(name)
    if ".." in pure.parts:
        raise DataError(f"{one.where}: image {one.name!r} leaves the data folder, expected a path inside it")
    suffixes = [""] if pure.suffix.lower() in IMAGE_SUFFIXES else ["", *IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)]
    for folder in one.folders:
        for suffix in suffixes:
            path = f"{folder}/{name}{suffix}"
            # os.path.isfile is false for names that no file can have; Path.is_file raises.
            if os.path.isfile(path):
                return inside(root, Path(path), one.where)
    return None


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or bool(ntpath.splitdrive(name)[0]) or "://" in name


def _index(root: Path) -> dict[str, list[str]]:
    """Return the images below `root`, as paths relative to it, by folded name with and without suffix."""
    index: dict[str, list[str]] = defaultdict(list)
    for path in walk(root):
        if _is_image(path):
            relative = os.path.relpath(path, root)
            folded = _folded(os.path.basename(relative))
            index[folded].append(relative)
            index[_UPLOADED + as_uploaded(folded)].append(relative)
            stem = os.path.splitext(folded)[0]
            if not _is_image(stem):  # b.jpg.png is not b.jpg
                index[stem].append(relative)
    return index


def _by_spelling(root: Path, index: dict[str, list[str]], one: Sought) -> Path | None:
    far = _is_absolute(one.name.replace("\\", "/"))
    names = spellings(one.name)
    uploaded = _UPLOAD.match(one.name.rpartition("/")[2]) is not None
    # The folders of a name from elsewhere may have other names here.
    for spelled in (*names, *(name.rpartition("/")[2] for name in names if far)):
        parts = [part for part in spelled.split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            continue
        hits = [hit for hit in index.get(_folded(parts[-1]), ()) if _same_end(parts, hit.split(os.sep), far)]
        exact = [
            hit for hit in hits if unicodedata.normalize("NFC", hit).endswith(unicodedata.normalize("NFC", spelled))
        ]
        hits = exact if len(exact) == 1 else hits
        if len(hits) > 1:
            raise DataError(f"{one.where}: image {one.name!r} may be {' or '.join(hits[:3])}; name its folder")
        if hits:
            return inside(root, root / hits[0], one.where)
    # Label Studio changes the names of uploaded files.
    hits = index.get(_UPLOADED + as_uploaded(_folded(names[-1])), []) if uploaded else []
    if len(hits) > 1:
        raise DataError(f"{one.where}: image {one.name!r} may be {' or '.join(hits[:3])}; name its folder")
    return inside(root, root / hits[0], one.where) if hits else None


def as_uploaded(name: str) -> str:
    """Return the last part of a name as Label Studio stores uploaded files."""
    return re.sub(r"[^-\w.]", "", name.rpartition("/")[2].strip().replace(" ", "_"))


def _same_end(name: Sequence[str], path: Sequence[str], far: bool) -> bool:
    """Tell whether a name's parts are the last of a path; or, for a name from elsewhere (`far`), the path's of it."""
    count = min(len(name), len(path))
    if len(name) > len(path) and not far:
        return False
    ends = [[_folded(part) for part in parts[-count:-1]] for parts in (name, path)]
    return ends[0] == ends[1]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
