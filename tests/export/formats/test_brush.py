import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tagseg.export.brush import decode_brush, encode_brush

PIXELS = arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def decode(code: list[int]) -> list[int]:
    """Return the values of a code, read bit by bit according to rle-pack."""
    bits = [byte >> (7 - i) & 1 for byte in code for i in range(8)]
    place = 0

    def read(count: int) -> int:
        nonlocal place
        number = 0
        for bit in bits[place : place + count]:
            number = 2 * number + bit
        place += count
        return number

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    assert 0 <= len(bits) - place < 8
    return values


@given(PIXELS)
def test_a_slow_decoder_reads_the_pixels(pixels: np.ndarray) -> None:
    assert decode(encode_brush(pixels)) == np.repeat(pixels.ravel() * 255, 4).tolist()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 4), (4, 16), (128, 128), (128, 129), (300, 300)])
def test_runs_of_any_length(shape: tuple[int, int]) -> None:
    pixels = np.ones(shape, bool)
    pixels[-1, -1] = False
    assert decode(encode_brush(pixels)) == np.repeat(pixels.ravel() * 255, 4).tolist()


def test_the_header_is_label_studios() -> None:
    # A task from Label Studio itself, with an empty mask for an image of 3332 x 2527 pixels, starts with these bytes.
    code = encode_brush(np.zeros((2527, 3332), bool))
    start = [2, 1, 233, 240, 57, 27, 255, 255, 255, 0, 255, 255, 224, 31, 255, 252, 3, 255, 255, 128, 127, 255, 240, 15]
    assert code[: len(start)] == start


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (300, 300)])
def test_what_was_encoded_is_decoded(shape: tuple[int, int]) -> None:
    for share in (0.0, 0.4, 1.0):
        pixels = np.random.default_rng(0).random(shape) < share
        assert np.array_equal(decode_brush(encode_brush(pixels), shape), pixels)


def test_listed_values_are_decoded() -> None:
    """Label Studio's own code for two pixels, transparent and opaque, as a list of eight values."""
    bits = f"{8:032b}{7:05b}" + "0010" * 4 + "0" + "00" + "111" + "00000000" * 4 + "11111111" * 4
    bits += "0" * (-len(bits) % 8)
    code = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert decode_brush(code, (1, 2)).tolist() == [[False, True]]


@pytest.mark.parametrize("cut", [0, 3, 7, 9, -1])
def test_damaged_codes_are_refused(cut: int) -> None:
    code = encode_brush(np.random.default_rng(0).random((20, 20)) < 0.5)
    with pytest.raises(ValueError, match="brush region"):
        decode_brush(code[:cut], (20, 20))
