from typing import Any

import numpy as np
import pytest

from tagseg.crf.compiled import jit
from tagseg.crf.kernels import add_scaled, add_slice, blur, four, join, store
from tagseg.crf.lattice import Lattice, run_here
from tagseg.crf.mean_field import filtered


@jit
def combine(x: Any, y: Any, row: int, factor: Any) -> None:
    """Write the first row of y, plus `factor` times a row of x, to that row of x."""
    store(x[row], add_scaled(four(y[0]), factor, four(x[row])))


def test_four_numbers_are_read_and_written_in_the_right_place() -> None:
    x = np.arange(3 * 13, dtype=np.float32).reshape(3, 13)
    y = np.arange(100, 1000, 100, dtype=np.float32)[None]
    expected = x.copy()
    expected[1, :4] = y[0, :4] + 0.5 * x[1, :4]
    combine(x, y, 1, np.float32(0.5))
    assert (x == expected).all()


def test_rows_need_not_be_contiguous() -> None:
    whole = np.zeros((4, 20), np.float32)
    combine(whole[::2, 8:12], np.ones((1, 8), np.float32), 1, np.float32(1))
    assert (whole[2, 8:12] == 1).all() and whole.sum() == 4


@pytest.mark.parametrize("width", [4, 8, 24])
def test_blurring_lines_by_hand(width: int) -> None:
    # Two lines, 3 - 0 - 4 and 1 - 2; vertex 5 is on no line.
    starts, vertices = np.array([0, 3, 5]), np.array([3, 0, 4, 1, 2], np.uint32)
    x = np.array([2, 10, 20, 4, 8, 7], np.float32)[:, None] * np.arange(1, width + 1, dtype=np.float32)
    blur(0, 2, starts, vertices, x)
    assert x[:, 0].tolist() == [2 + 2 + 4, 10 + 10, 20 + 5, 4 + 1, 8 + 1, 7]
    assert (x == x[:, :1] * np.arange(1, width + 1)).all()


@pytest.mark.parametrize("width", [4, 8, 24])
def test_splatting_and_slicing_by_hand(width: int) -> None:
    # Point 0 is the first half, points 1 and 2 are the second; there are no axes to blur along.
    corners = np.array([[0, 1], [1, 2], [2, 0]], np.uint32)
    weights = np.array([[0.5, 0.25], [1, 2], [4, 0.125]], np.float32)
    factors = np.arange(1, width + 1, dtype=np.float32)
    values = np.array([8, 16, 32], np.float32)[:, None] * factors
    lattice = Lattice(3, 2, corners, weights, ())
    found = filtered(lattice, values, np.full((5, width), np.nan, np.float32), run_here)
    assert (found == np.array([4 + 4, 2 + 16, 32 + 128])[:, None] * factors).all()
    out = np.ones((3, width), np.float32)
    add_slice(1, 3, corners, weights, found, out)
    assert (out == 1 + np.array([0, 18 + 320, 640 + 1])[:, None] * factors).all()


def test_only_the_given_rows_are_joined() -> None:
    source, target = np.full((3, 8), 2, np.float32), np.ones((4, 8), np.float32)
    join(1, 3, source, target)
    assert target[:, 0].tolist() == [1, 3, 3, 1] and (target == target[:, :1]).all()
