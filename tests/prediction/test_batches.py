from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tagseg.prediction.batches import in_batches
from tagseg.prediction.read import Read


def images(widths: Sequence[int], taken: list[int] | None = None) -> Iterator[tuple[Read, Tensor | None]]:
    """Yield pictures of one row with their number in every pixel, none where the width is 0."""
    for number, width in enumerate(widths):
        if taken is not None:
            taken.append(number)
        picture = torch.full((3, 1, width), number, dtype=torch.uint8) if width else None
        yield Read(str(number), Path(str(number))), picture


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_images_come_out_in_their_order_each_with_its_own(widths: list[int], batch: int) -> None:
    def look(pictures: Sequence[Tensor]) -> list[np.ndarray]:
        assert 0 < len(pictures) <= batch and len({picture.shape for picture in pictures}) == 1
        return [picture.float().numpy() for picture in pictures]

    found = list(in_batches(images(widths), look, batch, 100))
    assert [one.name for one, _ in found] == [str(number) for number in range(len(widths))]
    for number, (width, (_, seen)) in enumerate(zip(widths, found, strict=True)):
        assert (seen is None) == (width == 0)
        assert seen is None or (seen.shape == (3, 1, width) and (seen == number).all())


def batches(widths: list[int], batch: int, pixels: int = 1000) -> list[list[int]]:
    asked: list[list[int]] = []

    def look(pictures: Sequence[Tensor]) -> list[np.ndarray]:
        asked.append([int(picture[0, 0, 0]) for picture in pictures])
        return [picture.float().numpy() for picture in pictures]

    assert len(list(in_batches(images(widths), look, batch, pixels))) == len(widths)
    return asked


def test_images_of_one_size_go_together_wherever_they_are_among_the_next() -> None:
    assert batches([1, 2, 1, 0, 2, 1, 1, 2], 3) == [[0, 2, 5], [1, 4, 7], [6]]
    assert batches([1, 2, 1], 1) == [[0], [1], [2]]
    # Four batches of two are read ahead.
    assert batches([1, 2, 2, 2, 2, 2, 2, 2, 1], 2) == [[0], [1, 2], [3, 4], [5, 6], [7], [8]]


def test_large_images_are_not_gathered() -> None:
    assert batches([50] * 4, 2, pixels=10) == [[0, 1], [2, 3]]
    assert batches([100] * 4, 2, pixels=10) == [[0], [1], [2], [3]]


@pytest.mark.parametrize(("batch", "most"), [(1, 1), (2, 8)])
def test_no_more_is_read_than_is_needed(batch: int, most: int) -> None:
    taken: list[int] = []
    stream = in_batches(images([1] * 50, taken), lambda some: [one.float().numpy() for one in some], batch, 1000)
    next(stream)
    assert len(taken) == most
