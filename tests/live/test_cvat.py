import numpy as np
import pytest

from tagseg.export.regions import regions
from tagseg.live.cvat import _outline, _runs


@pytest.mark.parametrize("shape", [(1, 1), (5, 7)])
def test_runs_cover_the_box_and_restore_the_mask(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.6
    mask[0, 0] = True
    *runs, left, top, right, bottom = map(int, _runs(mask))
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(bottom - top + 1, right - left + 1)
    restored = np.zeros(shape, bool)
    restored[top : bottom + 1, left : right + 1] = inside
    assert np.array_equal(restored, mask)


def test_an_outline_is_a_flat_list_of_points() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[2:6, 3:8] = 1
    (region,) = regions(mask)
    assert sorted(zip(*[iter(_outline(region))] * 2, strict=True)) == [(3, 2), (3, 6), (8, 2), (8, 6)]
