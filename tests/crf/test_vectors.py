from typing import Any

import numpy as np
import pytest

from tagseg.crf.compiled import jit
from tagseg.crf.vectors import add_scaled, eight, four, load, store


@jit
def combine_four(x: Any, y: Any, row: int, column: int, factor: Any) -> None:
    """Write the first numbers of y and `factor` times those of x, from a column of a row on, there."""
    store(x, row, column, add_scaled(load(y, 0, 0, four()), factor, load(x, row, column, four())))


@jit
def combine_eight(x: Any, y: Any, row: int, column: int, factor: Any) -> None:
    """The same, eight at a time."""
    store(x, row, column, add_scaled(load(y, 0, 0, eight()), factor, load(x, row, column, eight())))


@jit
def clear(x: Any) -> None:
    """Write four zeros, and four halves of a row's end behind them."""
    store(x, 0, 0, four())
    store(x, 0, 4, add_scaled(four(), np.float32(0.5), load(x, 0, 8, four())))


KINDS = {4: combine_four, 8: combine_eight}


@pytest.mark.parametrize("count", KINDS)
@pytest.mark.parametrize("column", [0, 1, 3, 5])
def test_numbers_are_read_and_written_where_they_should_be(count: int, column: int) -> None:
    x = np.arange(3 * 13, dtype=np.float32).reshape(3, 13)
    y = np.arange(100, 1000, 100, dtype=np.float32)[None]
    expected = x.copy()
    expected[1, column : column + count] = y[0, :count] + 0.5 * x[1, column : column + count]
    KINDS[count](x, y, 1, column, np.float32(0.5))
    assert (x == expected).all()


@pytest.mark.parametrize("count", KINDS)
def test_rows_may_lie_apart(count: int) -> None:
    whole = np.zeros((4, 20), np.float32)
    KINDS[count](whole[::2, 4:18], np.ones((1, 8), np.float32), 1, 4, np.float32(1))
    assert (whole[2, 8 : 8 + count] == 1).all() and whole.sum() == count


def test_zeros() -> None:
    x = np.arange(1, 13, dtype=np.float32)[None].copy()
    clear(x)
    assert x[0].tolist() == [0, 0, 0, 0, 4.5, 5, 5.5, 6, 9, 10, 11, 12]
