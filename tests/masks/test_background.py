import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tagseg.masks.background import cut, decide, otsu, with_void
from tagseg.settings import MaskSettings

VALUES = arrays.arrays(np.uint8, st.integers(1, 30), elements=st.integers(0, 255))
SHARES = st.integers(0, 256).map(lambda number: number / 256)


def spread_between(values: np.ndarray, threshold: int) -> float:
    """Return the variance between the values up to `threshold` and those above, the slow way (0 if a side is empty)."""
    low, high = [int(v) for v in values if v <= threshold], [int(v) for v in values if v > threshold]
    if not low or not high:
        return 0.0
    return len(low) * len(high) * (sum(low) / len(low) - sum(high) / len(high)) ** 2


@given(VALUES)
def test_otsu_splits_as_well_as_the_best_of_all_cuts(values: np.ndarray) -> None:
    spreads = [spread_between(values, threshold) for threshold in range(255)]
    found = otsu(values) * 255
    if max(spreads) == 0:
        assert found == 127.5
    else:
        assert spread_between(values, int(np.floor(found))) == pytest.approx(max(spreads))


def test_otsu_by_hand() -> None:
    # Two clumps: every cut from 20 to 199 separates them equally well, and the middle one, 109.5 + 0.5, is taken.
    assert otsu(np.array([10, 20, 200, 210], np.uint8)) == 110 / 255
    # 0 | 90 100: between = 1 * 2 * 95^2 = 18050 beats 0 90 | 100: 2 * 1 * 55^2 = 6050; cuts 0..89, middle 44.5 + 0.5.
    assert otsu(np.array([0, 90, 100], np.uint8)) == 45 / 255


@pytest.mark.parametrize("value", [0, 77, 255])
def test_otsu_of_equal_values_is_the_middle(value: int) -> None:
    assert otsu(np.full((3, 4), value, np.uint8)) == 0.5


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 4.0, 16.0])
def test_the_power_rule_cuts_where_map_and_background_are_equal(power: float) -> None:
    share = cut(np.zeros((2, 2), np.uint8), MaskSettings(background="power", power=power))
    assert share == pytest.approx((1 - share) ** power, abs=0.02) and 0 < share < 1
    assert (share - 0.001) < (1 - share + 0.001) ** power


def test_the_power_rule_by_hand() -> None:
    assert cut(np.zeros((1, 1), np.uint8), MaskSettings(background="power", power=1.0)) == pytest.approx(0.5)
    golden = (3 - 5**0.5) / 2  # p = (1 - p)^2
    assert cut(np.zeros((1, 1), np.uint8), MaskSettings(background="power")) == pytest.approx(golden, abs=1e-3)


def test_only_otsu_looks_at_the_map() -> None:
    maps = np.array([[0, 0], [240, 255]], np.uint8), np.array([[0, 20], [40, 255]], np.uint8)
    assert {cut(values, MaskSettings(background="threshold", threshold=0.3)) for values in maps} == {0.3}
    assert len({cut(values, MaskSettings(background="power")) for values in maps}) == 1
    assert cut(maps[0], MaskSettings("otsu")) == otsu(maps[0]) != cut(maps[1], MaskSettings("otsu"))


def decide_slowly(maps: np.ndarray, classes: tuple[int, ...], cuts: list[float], unsure: float) -> tuple[list, list]:
    """Return ids and doubts pixel by pixel, as the docstring says."""
    ids, doubts = [], []
    for pixel in maps.reshape(len(classes), -1).T:
        margins = sorted(((np.float32(p) - np.float32(c), k) for p, c, k in zip(pixel, cuts, classes, strict=True)))
        best, name = margins[-1]
        doubt = abs(best) < unsure
        if len(margins) > 1 and margins[-2][0] > 0:
            doubt = doubt or best - margins[-2][0] < unsure
        ids.append(name if best > 0 else 0)
        doubts.append(bool(doubt))
    return ids, doubts


@given(st.integers(1, 3).flatmap(lambda k: st.tuples(
    arrays.arrays(np.float32, (k, 3, 4), elements=SHARES),
    st.permutations([1, 7, 254]).map(lambda ids: tuple(ids[:k])),
    st.lists(SHARES, min_size=k, max_size=k),
    st.sampled_from([0.0, 0.05, 0.3]),
)))  # fmt: skip
def test_decisions_are_those_of_a_loop(case: tuple[np.ndarray, tuple[int, ...], list[float], float]) -> None:
    maps, classes, cuts, unsure = case
    margins = np.sort(maps - np.array(cuts, np.float32)[:, None, None], axis=0)
    ids, doubtful = decide(maps, classes, cuts, unsure)
    expected = decide_slowly(maps, classes, cuts, unsure)
    tied = (margins[-1] == margins[-2]).ravel() if len(classes) > 1 else np.zeros(12, bool)
    assert ids.ravel()[~tied].tolist() == np.array(expected[0])[~tied].tolist()
    assert doubtful.ravel().tolist() == expected[1]


def test_one_class_has_a_band_of_doubt_around_its_cut() -> None:
    maps = np.array([[[0.0, 0.44, 0.46, 0.5, 0.54, 0.56, 1.0]]], np.float32)
    ids, doubtful = decide(maps, (9,), [0.5], 0.05)
    assert ids.tolist() == [[0, 0, 0, 0, 9, 9, 9]]
    assert doubtful.tolist() == [[False, False, True, True, True, False, False]]
    assert with_void(ids, doubtful).tolist() == [[0, 0, 255, 255, 255, 9, 9]]


def test_two_classes_in_conflict() -> None:
    maps = np.array([[[0.9, 0.9, 0.9, 0.3]], [[0.2, 0.88, 0.6, 0.28]]], np.float32)
    ids, doubtful = decide(maps, (3, 5), [0.5, 0.5], 0.05)
    # Alone; neck and neck; clearly ahead; both far below their cuts, where it does not matter that they are close.
    assert ids.tolist() == [[3, 3, 3, 0]]
    assert doubtful.tolist() == [[False, True, False, False]]


def test_what_counts_is_the_lead_over_the_own_cut() -> None:
    maps = np.array([[[0.8]], [[0.7]]], np.float32)
    assert decide(maps, (1, 2), [0.7, 0.3], 0.05)[0].tolist() == [[2]]


def test_without_doubt_every_pixel_is_sure() -> None:
    maps = np.random.default_rng(0).random((2, 8, 8), np.float32)
    assert not decide(maps, (1, 2), [0.4, 0.6], 0.0)[1].any()


def test_the_order_of_the_classes_does_not_matter() -> None:
    maps = np.random.default_rng(0).random((3, 8, 8), np.float32)
    ids, doubtful = decide(maps, (1, 2, 3), [0.4, 0.5, 0.6], 0.05)
    turned, doubtful_too = decide(maps[::-1], (3, 2, 1), [0.6, 0.5, 0.4], 0.05)
    assert (ids == turned).all() and (doubtful == doubtful_too).all() and len(np.unique(ids)) == 4


def test_no_class_is_all_background() -> None:
    ids, doubtful = decide(np.zeros((0, 2, 3), np.float32), (), [], 0.05)
    assert ids.tolist() == [[0, 0, 0]] * 2 and not doubtful.any()
