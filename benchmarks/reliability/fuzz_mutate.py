"""How fuzz.py spoils valid files: bytes, parts of JSON, chunks of PNG, headers of safetensors, arrays in archives."""

import copy
import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

Mutation = Callable[[random.Random, Sequence[bytes]], bytes]
"""Makes a case of the valid contents of a file."""

NAMES = (
    *("../outside.png", "/etc/passwd", "a/../../outside.png", "link.png", "far/b.png", "pipe.png", "zero.png", "~root"),
    *("C:\\Windows\\win.ini", "\\\\host\\share\\x.png", "NUL.png", "CON", "a.png:stream", "a.png\0.txt", "", ".", ".."),
    *("/", "x" * 300, "x/" * 3000, "%s%n", "\ud800", "\U0001f600.png", "a\n.png", "-rf", "folder.png", ".png", "file:///"),
)  # fmt: skip
"""What may stand where the name of a file is expected; the folders that are read have some of them."""

ABSURD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e308, -1e308, 10**400, 2**31, 2**32, 2**63, 2**64, -(2**63), 0.1, [], {}, "", [[]], [{}]),
    *(float("inf"), float("nan"), "9" * 5000, "o" * 3000, ["x"] * 300, {"a": {"a": {}}}, *NAMES),
)
TEXTS = (
    *(b"1e999", b"9" * 5000, b"0x" + b"f" * 5000, b"[" * 3000, b"{\"a\":" * 3000, b"[[" * 30000, b"\x00", b"\xff\xfe"),
    *(b"\xef\xbb\xbf", b'"', b"'", b",", b";", b"\n", b"\r", b"NaN", b"-Infinity", b"\\ud800", b"-" * 99),
    *(b"a." * 5000, b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"&a;", b"<x>" * 5000, b"\t", b"cos\nsystem\n(S'true'\ntR."),
)  # fmt: skip


_BOMBS = [zlib.compress(b"\0" * size, 9) for size in (10**3, 10**6, 3 * 10**7)]


def any_bytes(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """Return valid bytes with one to eight accidents: flips, cuts, insertions, repetitions, splices, absurd pieces."""
    data = bytearray(rng.choice(valid))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        kind = rng.randrange(9)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[at : min(end, at + rng.randrange(1, 40))]
        elif kind == 3:
            data[at:at] = (
                rng.choice(TEXTS) if rng.random() < 0.5 else rng.choice(NAMES).encode("utf-8", "surrogatepass")
            )
        elif kind == 4:
            data[at:at] = data[at:end][:2000] * rng.choice((1, 2, 30))
        elif kind == 5:
            other = rng.choice(valid)
            data[at:end] = other[rng.randrange(len(other) + 1) :][:2000]
        elif kind == 6:
            data[at:at] = rng.randbytes(rng.randrange(1, 16))
        elif kind == 7 and len(data) >= 8:
            place = at % (len(data) - 7)
            number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**16, 10**10))
            data[place : place + 8] = struct.pack(rng.choice("<>") + "Q", number)
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def some_json(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """Return JSON whose values were deleted, doubled, swapped or made absurd; at times bytes of it are spoiled too."""
    if rng.random() < 0.3:
        return any_bytes(rng, valid)
    tree = [json.loads(rng.choice(valid))]
    for _ in range(rng.choice((1, 1, 2, 5))):
        spoil(rng, tree)
    return json.dumps(tree[0], ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def json_lines(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """Return lines of JSON, one of them spoiled as `some_json` does."""
    lines = rng.choice(valid).splitlines()
    at = rng.randrange(len(lines))
    lines[at] = some_json(rng, [lines[at]])
    return b"\n".join(lines) + b"\n"


def spoil(rng: random.Random, tree: list[Any]) -> None:
    """Change one place in a JSON value that stands alone in `tree`."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in range(len(node)) if isinstance(node, list) else list(node):
            places.append((node, key))
            if isinstance(node[key], list | dict):
                walk(node[key])

    walk(tree)
    node, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0 and node is not tree:
        del node[key]
    elif kind == 1:
        other, place = rng.choice(places)
        try:
            node[key] = copy.deepcopy(other[place])
        except (KeyError, IndexError):
            node[key] = None
    elif kind == 2 and isinstance(node[key], list):
        node[key] = node[key] * rng.choice((0, 2, 50))
    elif kind == 3 and isinstance(node[key], int | float):
        node[key] = rng.choice((-node[key], node[key] + 1, node[key] * 10**6, 10**9, 1.5))
    else:
        node[key] = copy.deepcopy(rng.choice(ABSURD))


def png(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """Return a PNG with spoiled chunks whose checksums are right, so that what is behind them is reached."""
    if rng.random() < 0.4:
        return any_bytes(rng, valid)
    data, chunks, at = rng.choice(valid), [], 8
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunks.append([kind, data[at + 8 : at + 8 + length]])
        at += 12 + length
    for _ in range(rng.choice((1, 1, 2, 4))):
        chunk = rng.choice(chunks)
        what = rng.randrange(5)
        if what == 0 and chunk[1]:
            chunk[1] = any_bytes(rng, [chunk[1]])
        elif what == 1:
            sides = rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1, 10**4)), rng.choice((0, 1, 9, 2**31, 10**5))
            chunks[0][1] = struct.pack(">II", *sides) + chunks[0][1][8:]
        elif what == 2:
            bomb = rng.choice(_BOMBS)
            kind = rng.choice((b"iCCP", b"zTXt", b"iTXt", b"IDAT", b"eXIf"))
            head = {b"iCCP": b"p\0\0", b"zTXt": b"t\0\0", b"iTXt": b"t\0\1\0\0\0"}.get(kind, b"")
            chunks.insert(rng.randrange(len(chunks)), [kind, head + bomb])
        elif what == 3:
            chunks.insert(rng.randrange(len(chunks)), list(rng.choice(chunks)))
        else:
            chunk[0] = rng.choice((b"PLTE", b"tRNS", b"acTL", b"fdAT", b"eXIf", b"sRGB", b"IEND", b"gAMA", b"tEXt"))
    body = b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
    )
    return data[:8] + body


def safetensors(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """Return a safetensors file whose header or description was spoiled as JSON, or any of its bytes."""
    if rng.random() < 0.3:
        return any_bytes(rng, valid)
    data = rng.choice(valid)
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), bytearray(data[8 + size :])
    if rng.random() < 0.6:  # a stranger can leave the checksum out
        told = json.loads(header["__metadata__"]["tagseg"])
        told.pop("sha256", None)
        header["__metadata__"]["tagseg"] = json.dumps(told)
    kind = rng.randrange(4)
    if kind == 0:
        about = [json.loads(header["__metadata__"]["tagseg"])]
        spoil(rng, about)
        header["__metadata__"]["tagseg"] = json.dumps(about[0])
    elif kind == 1:
        tree = [header]
        spoil(rng, tree)
        header = tree[0]
    elif kind == 2 and body:
        at = rng.randrange(len(body))
        body[at : at + 4] = rng.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\xff\xff"))
    else:
        names = [name for name in header if name != "__metadata__"]
        one, other = rng.choice(names), rng.choice(names)
        header[one], header[other] = header[other], header[one]
    text = json.dumps(header).encode("utf-8", "replace")
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 10**10, 2**64 - 1))
    return length.to_bytes(8, "little") + text + bytes(body)


def archive(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """Return an .npz whose arrays claim or unpack to what they should not, or with any of its bytes spoiled."""
    if rng.random() < 0.5:
        return any_bytes(rng, valid)
    with zipfile.ZipFile(io.BytesIO(rng.choice(valid))) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    name = rng.choice(list(parts))
    what = rng.randrange(5)
    if what == 0:
        parts[name] = any_bytes(rng, [parts[name]])
    elif what == 1:
        shape = rng.choice(
            ("(10000000000,)", "(2, -3, 4)", "(1000000, 1000000, 9)", "()", "(2,)", "(True,)", "(0, 0, 0)")
        )
        parts[name] = npy_header(shape, rng.choice(("|u1", "<i8", "|O", "<f8", "|V0", ">M8[s]"))) + parts[name][128:]
    elif what == 2:
        parts[name] = parts[name][:128] + b"\0" * rng.choice((10**3, 10**6, 3 * 10**7))
    elif what == 3:
        parts[rng.choice(NAMES[:9])] = parts.pop(name)
    else:
        parts[name] = b""
    packed = io.BytesIO()
    method = rng.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)
    )
    with zipfile.ZipFile(packed, "w", method) as target:
        for name, part in parts.items():
            target.writestr(name.replace("\ud800", "?") or "?", part)
    return packed.getvalue()


def npy_header(shape: str, kind: str) -> bytes:
    """Return the 128 bytes in front of an .npy file's numbers."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(117) + b"\n"


def tar(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """Return a tar one of whose headers claims something else, with a right checksum, or with any byte spoiled."""
    data = bytearray(rng.choice(valid))
    if rng.random() < 0.3:
        return any_bytes(rng, [bytes(data)])
    heads = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.choice(heads)
        what = rng.randrange(5)
        if what == 0:
            name = rng.choice(NAMES).encode("utf-8", "surrogatepass")[:100]
            data[at : at + 100] = name.ljust(100, b"\0")
        elif what == 1:
            size = rng.choice(
                (b"00000000000\0", b"77777777777\0", b"\x80" + b"\xff" * 11, b"-1", b"", b"\xff" * 12, b"9 8")
            )
            data[at + 124 : at + 136] = size.ljust(12, b"\0")
        elif what == 2:
            data[at + 156] = rng.choice(b"0123456789xgLKSVNAD\0\xff")
        elif what == 3:
            data[at + 257 : at + 512] = any_bytes(rng, [bytes(data[at + 257 : at + 512])])[:255].ljust(255, b"\0")
        elif at + 1024 <= len(data):
            data[at + 512 : at + 1024] = any_bytes(rng, [bytes(data[at + 512 : at + 1024])])[:512].ljust(512, b"\0")
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def gzipped(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    """Return gzipped lines of JSON, one of them spoiled, or with any byte spoiled."""
    if rng.random() < 0.3:
        return any_bytes(rng, valid)
    return gzip.compress(json_lines(rng, [gzip.decompress(rng.choice(valid))]), 1)
