"""Label Studio's run-length encoding of brush strokes, written from the description of its format (rle-pack).

The header is a bit string: 32 bits hold the number of values, 5 bits the width of a value minus one, and four times
4 bits the widths of the four length fields, each minus one. Runs follow: 1 bit tells whether one value repeats (1) or
the values are listed (0), 2 bits select a length field, that field holds the length minus one, and then comes the value
or the values. The values are an RGBA image, row by row; Label Studio reads its last channel.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

_LENGTH_BITS = (3, 4, 8, 16)
_CHANNELS = 4


_OPAQUE = 128
_DIGITS = bytes.maketrans(b"\0\1", b"01")


def encode_brush(pixels: Bool[np.ndarray, "h w"]) -> list[int]:
    """Return a region as Label Studio's `rle`: a list of bytes, each 0 to 255."""
    values = pixels.ravel()
    bounds = np.r_[0, np.flatnonzero(values[1:] != values[:-1]) + 1, values.size]
    header = f"{values.size * _CHANNELS:032b}{7:05b}" + "".join(f"{bits - 1:04b}" for bits in _LENGTH_BITS)
    pieces = [header]
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        value, left = "1" * 8 if values[start] else "0" * 8, (stop - start) * _CHANNELS
        while left:
            length = min(left, 1 << _LENGTH_BITS[-1])
            field = next(i for i, bits in enumerate(_LENGTH_BITS) if length <= 1 << bits)
            pieces.append(f"1{field:02b}{length - 1:0{_LENGTH_BITS[field]}b}{value}")
            left -= length
    code = "".join(pieces)
    code += "0" * (-len(code) % 8)
    return list(int(code, 2).to_bytes(len(code) // 8, "big"))


def decode_brush(code: Sequence[int], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Return the opaque pixels of a region of (height, width) `size` from Label Studio's `rle`.

    Raises:
        ValueError: when the code is damaged, or of another size.
    """
    if not all(type(byte) is int and 0 <= byte <= 255 for byte in code):
        raise ValueError("a brush region must be a list of bytes, 0 to 255")
    bits = np.unpackbits(np.array(code, np.uint8)).tobytes().translate(_DIGITS).decode()
    count, width, at = int(bits[:32] or "0", 2), int(bits[32:37] or "0", 2) + 1, 53
    lengths = [int(bits[37 + 4 * i : 41 + 4 * i] or "0", 2) + 1 for i in range(4)]
    if count != size[0] * size[1] * _CHANNELS or width != 8 or len(bits) < at:
        raise ValueError(f"a brush region of {count} values of {width} bits, expected {size[0]} x {size[1]} x 4 bytes")
    values, done = np.empty(count, np.uint8), 0
    while done < count:
        if len(bits) < at + 3:
            raise ValueError("the code of a brush region is cut off")
        same, field = bits[at] == "1", lengths[int(bits[at + 1 : at + 3], 2)]
        at += 3 + field
        length = int(bits[at - field : at] or "0", 2) + 1
        needed = at + 8 * (1 if same else length)
        if length > count - done or needed > len(bits):
            raise ValueError("the code of a brush region is longer or shorter than its image")
        listed = [int(bits[start : start + 8], 2) for start in range(at, needed, 8)]
        values[done : done + length] = listed
        at, done = needed, done + length
    return values.reshape(*size, _CHANNELS)[..., -1] >= _OPAQUE
