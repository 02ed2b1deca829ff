from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_rle

from tagseg.data.records import CocoMask
from tagseg.data.segmentations import draw
from tagseg.errors import DataError

HEIGHT, WIDTH = 6, 8
NUMBERS = st.integers() | st.floats() | st.booleans() | st.text(max_size=3) | st.none()
RUNS = st.fixed_dictionaries(
    {
        "size": st.just([HEIGHT, WIDTH]) | st.lists(NUMBERS, max_size=3),
        "counts": st.text() | st.lists(NUMBERS) | st.lists(st.integers(0, 48), max_size=4) | NUMBERS,
    }
)
POLYGONS = st.lists(st.lists(st.floats(-9, 20), min_size=6, max_size=8) | st.lists(NUMBERS), max_size=3)


def drawn(*segments: tuple[int, Any, bool], size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    return draw(CocoMask(*size, segments), Path("a.png"))


@settings(max_examples=300)
@given(RUNS | POLYGONS | st.dictionaries(st.text(), NUMBERS) | NUMBERS, st.booleans())
def test_any_segmentation_is_drawn_or_refused_by_name(segmentation: object, crowd: bool) -> None:
    try:
        mask = drawn((2, segmentation, crowd))
    except DataError as error:
        assert str(error).startswith("a.png: a segmentation of its COCO annotations cannot be drawn (")
    else:
        assert mask.shape == (HEIGHT, WIDTH) and set(np.unique(mask)) <= {0, 255 if crowd else 2}


@settings(max_examples=100)
@given(st.lists(st.booleans(), min_size=HEIGHT * WIDTH, max_size=HEIGHT * WIDTH))
def test_pycocotools_codes_are_decoded_unchanged(pixels: list[bool]) -> None:
    mask = np.array(pixels, np.uint8).reshape(HEIGHT, WIDTH)
    code = coco_rle.encode(np.asfortranarray(mask))
    assert (drawn((1, {**code, "counts": code["counts"].decode()}, False)) == mask).all()


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1e9, 0, 0, 5, 3, 3]],
        [[float("inf"), 0, 0, 5, 3, 3]],
        [[float("nan"), 0, 0, 5, 3, 3]],
        [[10**400, 0, 0, 5, 3, 3]],
        [[0, 0, 999_999, 0, 0, 0, 999_999, 0]],
        [[0, 0, 300_000, 0, 0, 0]] * 40,
        [["1", "1", "5", "1", "5", "5"]],
        [[[1, 2, 3, 4, 5, 6]]],
        {"size": [HEIGHT, WIDTH], "counts": [2**32 + 48]},
        {"size": [HEIGHT, WIDTH], "counts": [10**400, 48 - 10**400]},
        {"size": [HEIGHT, WIDTH], "counts": [47.0, 1.0]},
        {"size": [HEIGHT, WIDTH], "counts": "o" * 10**6},
        {"size": [HEIGHT, WIDTH], "counts": "\u2603"},
        {"size": [HEIGHT, WIDTH], "counts": None},
    ],
)
def test_segmentations_that_pycocotools_cannot_handle_are_refused(segmentation: Any) -> None:
    with pytest.raises(DataError, match=r"^a\.png: a segmentation"):
        drawn((1, segmentation, False))


@pytest.mark.parametrize("size", [(0, 4), (-1, -4), (10**9, 10**9), (10**400, 1)])
def test_images_of_absurd_sizes_take_no_memory(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"^a\.png: .* an image of|^a\.png: .*\(an image of"):
        drawn(size=size)


def test_small_objects_lie_on_large_ones_and_on_crowds() -> None:
    large, small = [[0, 0, 8, 0, 8, 6, 0, 6]], [[2, 2, 4, 2, 4, 4, 2, 4]]
    mask = drawn((1, small, False), (2, large, False), (3, large, True))
    assert mask[3, 3] == 1 and (mask == 1).sum() == 4 and (mask == 2).sum() == 44
    assert (drawn((1, small, False), (3, large, True)) == 255).sum() == 44
