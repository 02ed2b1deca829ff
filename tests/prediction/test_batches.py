from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagseg.prediction.batches import batched_probabilities
from tagseg.prediction.read import InputImage


def images(widths: Sequence[int], taken: list[int] | None = None) -> Iterator[tuple[InputImage, np.ndarray | None]]:
    """Yield pictures of one row with their number in every pixel, and no picture for a width of 0."""
    for number, width in enumerate(widths):
        if taken is not None:
            taken.append(number)
        picture = np.full((1, width, 3), number, np.uint8) if width else None
        yield InputImage(str(number), Path(str(number))), picture


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_results_come_in_the_order_of_the_images(widths: list[int], batch: int) -> None:
    def network(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        assert 0 < len(pictures) <= batch and len({picture.shape for picture in pictures}) == 1
        return [picture.transpose(2, 0, 1).astype(np.float32) for picture in pictures]

    found = list(batched_probabilities(images(widths), network, batch, 100))
    assert [one.name for one, _ in found] == [str(number) for number in range(len(widths))]
    for number, (width, (_, values)) in enumerate(zip(widths, found, strict=True)):
        assert (values is None) == (width == 0)
        assert values is None or (values.shape == (3, 1, width) and (values == number).all())


def batches(widths: list[int], batch: int, pixels: int = 1000) -> list[list[int]]:
    calls: list[list[int]] = []

    def network(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        calls.append([int(picture[0, 0, 0]) for picture in pictures])
        return [picture.transpose(2, 0, 1).astype(np.float32) for picture in pictures]

    assert len(list(batched_probabilities(images(widths), network, batch, pixels))) == len(widths)
    return calls


def test_a_batch_has_images_of_one_size_from_anywhere_among_the_next() -> None:
    assert batches([1, 2, 1, 0, 2, 1, 1, 2], 3) == [[0, 2, 5], [1, 4, 7], [6]]
    assert batches([1, 2, 1], 1) == [[0], [1], [2]]
    # Four batches of two are read ahead.
    assert batches([1, 2, 2, 2, 2, 2, 2, 2, 1], 2) == [[0], [1, 2], [3, 4], [5, 6], [7], [8]]


def test_few_large_images_are_read_ahead() -> None:
    assert batches([50] * 4, 2, pixels=10) == [[0, 1], [2, 3]]
    assert batches([100] * 4, 2, pixels=10) == [[0], [1], [2], [3]]


@pytest.mark.parametrize(("batch", "most"), [(1, 1), (2, 8)])
def test_no_more_images_are_read_than_needed(batch: int, most: int) -> None:
    taken: list[int] = []
    results = batched_probabilities(
        images([1] * 50, taken), lambda some: [one.transpose(2, 0, 1).astype(np.float32) for one in some], batch, 1000
    )
    next(results)
    assert len(taken) == most
