"""Label Studio's run-length code of brush strokes: bits, written from the description of its format, rle-pack.

A code is 32 bits for the number of values, 5 for the bits of a value less one, four times 4 for the bits of the four
sizes that a run's length may have, less one. Then come runs: a bit that says whether one value is repeated (1) or
values follow one by one (0), 2 bits for which size, the length less one in so many bits, and the value or values. What
is coded is an image in RGBA, row by row; Label Studio reads its last channel.
"""

import numpy as np
from jaxtyping import Bool

_SIZES = (3, 4, 8, 16)
_CHANNELS = 4


def encode_brush(pixels: Bool[np.ndarray, "h w"]) -> list[int]:
    """Return a region as Label Studio's `rle`: the bytes of the code, 0..255."""
    rows = pixels.ravel()
    bounds = np.r_[0, np.flatnonzero(rows[1:] != rows[:-1]) + 1, rows.size]
    head = f"{rows.size * _CHANNELS:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in _SIZES)
    bits = [head]
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        value, left = "1" * 8 if rows[start] else "0" * 8, (stop - start) * _CHANNELS
        while left:
            length = min(left, 1 << _SIZES[-1])
            which = next(i for i, size in enumerate(_SIZES) if length <= 1 << size)
            bits.append(f"1{which:02b}{length - 1:0{_SIZES[which]}b}{value}")
            left -= length
    code = "".join(bits)
    code += "0" * (-len(code) % 8)
    return list(int(code, 2).to_bytes(len(code) // 8, "big"))
