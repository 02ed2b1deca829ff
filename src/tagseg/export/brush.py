"""Label Studio's run-length encoding of brush strokes, written from the description of its format (rle-pack).

The header is a bit string: 32 bits hold the number of values, 5 bits the width of a value minus one, and four times
4 bits the widths of the four length fields, each minus one. Runs follow: 1 bit tells whether one value repeats (1) or
the values are listed (0), 2 bits select a length field, that field holds the length minus one, and then comes the value
or the values. The values are an RGBA image, row by row; Label Studio reads its last channel.
"""

import numpy as np
from jaxtyping import Bool

_LENGTH_BITS = (3, 4, 8, 16)
_CHANNELS = 4


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
