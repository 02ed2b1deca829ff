"""Read members of tar files in place: nothing is extracted, and a member has a path like a file.

The path of a member is `SHARD.tar/OFFSET+SIZE/NAME`: its tar, its position in the tar and its name. With this path any
process can read the member at any time with one seek, without a list of the tar's members. Images in Arrow files
(arrow.py) have such paths too.
"""

import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import BinaryIO, NamedTuple

from tagseg.data.ignored import is_junk
from tagseg.errors import DataError

MAX_MEMBER = 1 << 30
"""Larger members are refused: no image has so many bytes, and members are read as a whole."""

MARKED_BYTES = 4096
"""Bytes at each end of an image's file that its mark depends on."""

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Suffixes of compressed tars, in lower case."""

_BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_MAX_EXTENSION = 1 << 16
_MEMBER = re.compile(
    r"(?P<shard>.+\.(?:tar|arrow))/(?P<offset>[0-9]{1,19})\+(?P<size>[0-9]{1,10})/.+", re.DOTALL | re.IGNORECASE
)
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A regular file in a tar: its name (relative, with forward slashes), and its offset and size in bytes."""

    name: str
    offset: int
    size: int

    def path(self, shard: Path) -> Path:
        """Return the path with which `open_file` and the image readers open the member."""
        return shard.joinpath(f"{self.offset}+{self.size}", self.name)


def is_member(path: Path) -> bool:
    """Tell whether a path points to a member of a tar."""
    return _place(path) is not None


def open_file(path: Path) -> io.BytesIO | io.BufferedReader:
    """Open a file or a member of a tar for reading.

    Raises:
        DataError: when the tar ends before the member does.
        OSError: when the file cannot be read.
    """
    return open_member(path) or path.open("rb")


def open_member(path: Path) -> io.BytesIO | None:
    """Return a member of a tar, read into memory, or None if `path` does not point to one.

    Raises:
        DataError: when the tar ends before the member does.
        OSError: when the tar cannot be read.
    """
    place = _place(path)
    if place is None:
        return None
    shard, offset, size = place
    if size > MAX_MEMBER:
        raise DataError(f"{path}: the member has {size} bytes, expected at most {MAX_MEMBER}")
    with shard.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise DataError(f"{path}: {shard.name} ends before this member: it was rewritten or cut off")
    return io.BytesIO(content)


def marks_digest(marks: Iterable[tuple[str, str]]) -> str:
    """Return a checksum of files by their names and marks (see `content_mark`)."""
    digest = hashlib.sha256()
    for name, mark in marks:
        digest.update(f"{name}\0{mark}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def content_mark(path: Path) -> str:
    """Return the size of a file or a member of a tar and a checksum of its ends, by which another content is noticed
    without reading it all; empty if it cannot be read."""
    try:
        shard, start, size = _place(path) or (path, 0, path.stat().st_size)
        with shard.open("rb") as file:
            file.seek(start)
            digest = zlib.crc32(file.read(min(size, MARKED_BYTES)))
            file.seek(start + max(size - MARKED_BYTES, 0))
            digest = zlib.crc32(file.read(min(size, MARKED_BYTES)), digest)
    except OSError:
        return ""
    return f"{size}-{digest:08x}"


def file_stamp(path: Path) -> tuple[int, int]:
    """Return the size in bytes of a file or a member of a tar, and when the file or the tar was last changed, in ns."""
    place = _place(path)
    status = (path if place is None else place[0]).stat()
    return status.st_size if place is None else place[2], status.st_mtime_ns


def refuse_compressed(path: Path) -> None:
    """Check that a path does not have the name of a compressed tar.

    Raises:
        DataError: when it does.
    """
    if path.name.lower().endswith(COMPRESSED):
        raise DataError(f"{path}: a compressed tar, {_WHY}")


_WHY = (
    "expected a plain one: images are read by their position, which compression hides, and are already compressed; "
    "decompress it with gunzip, bunzip2, unxz or unzstd, or write it without compression"
)


def members(shard: Path, junk: list[str] | None = None) -> Iterator[Member]:
    """Yield the regular files of a tar (POSIX, GNU or old) in their order, reading only their headers.

    Folders, links, devices, pipes and hidden files (macOS adds some) are left out.

    Raises:
        DataError: with tar and position, when the tar is compressed, damaged or cut off; when a member is sparse or
            larger than MAX_MEMBER; when a name is absolute, has `..` or occurs twice.
    """
    seen: set[str] = set()
    try:
        with shard.open("rb") as file:
            for name, kind, offset, size in _headers(shard, file):
                name = name.removeprefix("./")
                if kind not in _REGULAR or name.endswith("/"):
                    continue
                _require_safe(shard, name)
                if name in seen:
                    raise DataError(f"{shard}: has {name!r} twice, expected every name once")
                seen.add(name)
                if any(map(is_junk, name.split("/"))):
                    if junk is not None:
                        junk.append(f"{shard}/{name}")
                else:
                    yield Member(name, offset, size)
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror})") from error


def _headers(shard: Path, file: BinaryIO) -> Iterator[tuple[str, bytes, int, int]]:
    """Yield name, kind, offset and size of every member.

    This replaces tarfile, which up to Python 3.13 can be made to loop, to recurse and to fill the memory by headers.
    """
    end, at = os.fstat(file.fileno()).st_size, 0
    extended: dict[str, bytes] = {}  # what extension headers say about the next member
    while at < end:
        file.seek(at)
        head = file.read(_BLOCK)
        if not head.strip(b"\0"):
            return
        if len(head) < _BLOCK or _checksum(head) != _number(head[148:156]):
            raise DataError(f"{shard}: {_no_header(head, at)}")
        kind, size = head[156:157], _number(head[124:136])
        extends = kind in b"xLgK"
        if not extends and "size" in extended:
            size = int(extended["size"]) if re.fullmatch(b"[0-9]{1,19}", extended["size"]) else -1
        if not 0 <= size <= (_MAX_EXTENSION if extends else MAX_MEMBER):
            raise DataError(f"{shard}: the header at byte {at} claims {size} bytes, expected at most {MAX_MEMBER}")
        if at + _BLOCK + size > end:
            raise DataError(f"{shard}: cut off at byte {end}, within the member at byte {at}")
        if extends:
            extended |= _extension(kind, file.read(size))
        else:
            if kind == b"S" or any(key.startswith("GNU.sparse") for key in extended):
                raise DataError(f"{shard}: a sparse member at byte {at}, expected plain members (tar without --sparse)")
            yield extended.get("path", _name(head)).decode("utf-8", "surrogateescape"), kind, at + _BLOCK, size
            extended = {}
        at += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _extension(kind: bytes, content: bytes) -> dict[str, bytes]:
    """Return what a GNU long name, or records `LENGTH KEY=VALUE\\n` of a POSIX header, say about the next member."""
    if kind == b"L":
        return {"path": content.split(b"\0", 1)[0]}
    extended: dict[str, bytes] = {}
    while kind == b"x" and content:
        digits, _, _ = content[:8].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, sign, value = content[len(digits) + 1 : length].partition(b"=")
        if not sign or not value.endswith(b"\n"):
            break
        extended[key.decode("utf-8", "replace")] = value[:-1]
        content = content[length:]
    return extended


def _name(head: bytes) -> bytes:
    name, prefix = (field.split(b"\0", 1)[0] for field in (head[:100], head[345:500]))
    return prefix + b"/" + name if prefix and head[257:263] == b"ustar\0" else name


def _number(field: bytes) -> int:
    """Return an octal number or, if the highest bit is set, a binary one; -1 if it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    return int(digits or b"0", 8) if re.fullmatch(b"[0-7]*", digits) else -1


def _checksum(head: bytes) -> int:
    return sum(head[:148]) + 8 * ord(" ") + sum(head[156:])


def _no_header(head: bytes, at: int) -> str:
    packed = next((name for magic, name in _MAGIC.items() if at == 0 and head.startswith(magic)), None)
    return f"compressed by {packed}, {_WHY}" if packed else f"damaged or not a tar: no header at byte {at}"


def _require_safe(shard: Path, name: str) -> None:
    parts = name.split("/")
    if not name or name.startswith("/") or PureWindowsPath(name).drive or {"", ".", ".."} & set(parts) or "\\" in name:
        raise DataError(f"{shard}: a member is called {name!r}, expected a relative path without `..`")
    if "\0" in name or len(name) > 4096:
        raise DataError(f"{shard}: a member has a name of {len(name)} characters, which no file can have")


def _place(path: Path) -> tuple[Path, int, int] | None:
    found = _MEMBER.fullmatch(path.as_posix())
    # A folder may also be called NAME.tar.
    if found is None or not os.path.isfile(found["shard"]):
        return None
    return Path(found["shard"]), int(found["offset"]), int(found["size"])
