import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_rle

from tagseg.export.regions import Region, regions

MASKS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 0, 1, 7]))


def flood(mask: np.ndarray) -> set[frozenset[tuple[int, int]]]:
    """Return the 8-connected parts of non-zero pixels, found pixel by pixel."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    parts = set()
    while left:
        part, todo = set(), [left.pop()]
        while todo:
            y, x = todo.pop()
            part.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        parts.add(frozenset(part))
    return parts


def decoded(region: Region) -> np.ndarray:
    """Return a region's pixels as pycocotools decodes them."""
    return np.asarray(coco_rle.decode(region.code())).astype(bool)


@given(MASKS)
def test_pycocotools_reads_every_region(mask: np.ndarray) -> None:
    found = list(regions(mask))
    assert [region.class_id for region in found] == [value for value in np.unique(mask) if value]
    for region in found:
        assert np.array_equal(decoded(region), mask == region.class_id)
        assert region.area() == (mask == region.class_id).sum()
        assert list(region.box()) == np.asarray(coco_rle.toBbox(region.code())).tolist()


@given(MASKS)
def test_parts_are_those_of_a_flood(mask: np.ndarray) -> None:
    for region in regions(mask):
        parts = list(region.parts())
        assert {frozenset(map(tuple, np.argwhere(decoded(part)).tolist())) for part in parts} == flood(
            mask == region.class_id
        )
        firsts = [int(part.starts[0]) for part in parts]
        assert firsts == sorted(firsts)
        for part in parts:
            left, top, width, height = part.box()
            assert np.array_equal(part.pixels(), decoded(part)[top : top + height, left : left + width])


def test_by_hand() -> None:
    mask = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 2]], np.uint8)
    one, two = regions(mask)
    # Down the columns: 0, 3, 6 | 1, 4, 7 | 2, 5, 8 are the rows; class 1 has numbers 0 and 4, class 2 number 8.
    assert (one.starts.tolist(), one.stops.tolist()) == ([0, 4], [1, 5])
    assert (two.starts.tolist(), two.stops.tolist()) == ([8], [9])
    assert len(list(one.parts())) == 1  # they touch at a corner
    assert one.box() == (0, 0, 2, 2) and two.box() == (2, 2, 1, 1)


@pytest.mark.parametrize("value", [0, 5])
def test_masks_of_one_value(value: int) -> None:
    found = list(regions(np.full((4, 6), value, np.uint8)))
    assert len(found) == bool(value)
    for region in found:
        assert region.area() == 24 and region.pixels().all() and decoded(region).all()
