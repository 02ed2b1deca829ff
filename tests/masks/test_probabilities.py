import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tagseg.masks.probabilities import (
    LIMIT,
    agreement,
    background_cut,
    decide_labels,
    label_probabilities,
    otsu,
    with_saliency,
)
from tagseg.settings.masks import MaskSettings

VALUES = arrays.arrays(np.uint8, st.integers(1, 30), elements=st.integers(0, 255))
SHARES = st.integers(0, 256).map(lambda number: number / 256)
MAPS = st.integers(1, 3).flatmap(lambda k: arrays.arrays(np.float32, (k, 2, 3), elements=SHARES))
RULES = ["rest", "otsu", "threshold", "power"]


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


def test_only_otsu_looks_at_the_map() -> None:
    maps = np.array([[0, 0], [240, 255]], np.uint8), np.array([[0, 20], [40, 255]], np.uint8)
    assert {background_cut(values, MaskSettings(background="threshold", threshold=0.3)) for values in maps} == {0.3}
    assert (
        background_cut(maps[0], MaskSettings("otsu")) == otsu(maps[0]) != background_cut(maps[1], MaskSettings("otsu"))
    )


def slow_probabilities(pixel: list[float], rule: str, cuts: tuple[float, ...], power: float) -> list[float]:
    """Return one pixel's probabilities as the docstring says."""
    pixel = [min(max(value, LIMIT), 1 - LIMIT) for value in pixel]
    if rule == "rest":
        scores = [max(1 - sum(pixel), LIMIT), *pixel]
    elif rule == "power":
        scores = [max((1 - max(pixel)) ** power, LIMIT), *pixel]
    else:
        scores = [1.0, *(m / (1 - m) / (c / (1 - c)) for m, c in zip(pixel, cuts, strict=True))]
    return [score / sum(scores) for score in scores]


@pytest.mark.parametrize("rule", RULES)
@given(maps=MAPS, power=st.sampled_from([0.5, 2.0, 16.0]), cuts=st.lists(st.floats(0.05, 0.95), min_size=3, max_size=3))
def test_probabilities_are_those_of_a_loop(rule: str, maps: np.ndarray, power: float, cuts: list[float]) -> None:
    own = tuple(cuts[: len(maps)])
    found = label_probabilities(maps, MaskSettings(rule, power=power), own)  # type: ignore[arg-type]
    slow = [slow_probabilities(pixel.tolist(), rule, own, power) for pixel in maps.reshape(len(maps), -1).T]
    assert found.dtype == np.float32 and np.allclose(found.reshape(len(maps) + 1, -1).T, slow, atol=2e-3)
    assert np.allclose(found.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("limit", [0.2, 0.5, 0.8])
def test_class_and_background_are_equally_likely_at_the_cut(limit: float) -> None:
    maps = np.array([[[limit - 0.1, limit, limit + 0.1]]], np.float32)
    below, at, above = label_probabilities(maps, MaskSettings("threshold", limit), (limit,))[1, 0]
    assert below < 0.5 < above and at == pytest.approx(0.5)


def test_the_power_rule_by_hand() -> None:
    golden = (3 - 5**0.5) / 2  # m = (1 - m)^2
    found = label_probabilities(np.full((1, 1, 1), golden, np.float32), MaskSettings("power"), (0.5,))
    assert found.ravel() == pytest.approx([0.5, 0.5])


def test_background_has_what_the_tags_leave_over() -> None:
    maps = np.array([[[0.5]], [[0.3]]], np.float32)
    assert label_probabilities(maps, MaskSettings("rest"), (0.5, 0.5)).ravel() == pytest.approx([0.2, 0.5, 0.3])
    crowded = label_probabilities(maps * 2, MaskSettings("rest"), (0.5, 0.5)).ravel()
    assert crowded[0] == pytest.approx(LIMIT, rel=1) and crowded[1] > crowded[2] > 0.3


@pytest.mark.parametrize("rule", RULES)
def test_no_tags_leave_background_alone(rule: str) -> None:
    nothing = np.zeros((0, 2, 3), np.float32)
    found = label_probabilities(nothing, MaskSettings(rule), ())  # type: ignore[arg-type]
    assert (found == np.ones((1, 2, 3))).all()
    assert (with_saliency(found, np.full((2, 3), 255, np.uint8)) == found).all()
    ids, unsure = decide_labels(found, agreement(found, found), (), 0.05)
    assert not ids.any() and not unsure.any()


def test_saliency_says_where_background_is() -> None:
    before = np.array([[0.5, 0.9, 0.2], [0.4, 0.05, 0.6], [0.1, 0.05, 0.2]], np.float32)[:, None]
    after = with_saliency(before, np.array([[0, 255, 102]], np.uint8))
    assert after.sum(0) == pytest.approx(np.ones((1, 3)))
    assert after[0, 0] == pytest.approx([1, 0, 0.6], abs=2 * LIMIT)
    assert after[:, 0, 1] == pytest.approx([0, 0.5, 0.5], abs=2 * LIMIT)
    assert after[:, 0, 2] == pytest.approx([0.6, 0.3, 0.1])
    # Salient, but by the maps background: the two contradict one another, and the pixel is unsure.
    _, unsure = decide_labels(after, agreement(before, after), (3, 5), 0.05)
    assert unsure.tolist() == [[False, True, True]]


def test_a_pixel_is_sure_where_maps_and_refinement_agree() -> None:
    before = np.array([[0.9, 0.52, 0.1, 0.45], [0.1, 0.48, 0.9, 0.55]], np.float32)[:, None]
    after = np.array([[1.0, 0.5, 1.0, 0.0], [0.0, 0.5, 0.0, 1.0]], np.float32)[:, None]
    sure = agreement(before, after)
    assert sure[0, 0] == pytest.approx([math.sqrt(0.9), math.sqrt(0.26), math.sqrt(0.1), 0])
    ids, unsure = decide_labels(after, sure, (9,), 0.05)
    assert ids.tolist() == [[0, 0, 0, 9]] and unsure.tolist() == [[False, True, True, False]]


def test_without_refinement_one_class_has_a_band_of_doubt_around_its_cut() -> None:
    maps = np.array([[[0.0, 0.44, 0.46, 0.501, 0.54, 0.56, 1.0]]], np.float32)
    found = label_probabilities(maps, MaskSettings("threshold", 0.5), (0.5,))
    ids, unsure = decide_labels(found, agreement(found, found), (9,), 0.05)
    assert ids.tolist() == [[0, 0, 0, 9, 9, 9, 9]]
    assert unsure.tolist() == [[False, False, True, True, True, False, False]]


def test_two_classes_in_conflict_are_unsure() -> None:
    found = np.array([[0.1, 0.1, 0.6], [0.8, 0.46, 0.2], [0.1, 0.44, 0.2]], np.float32)[:, None]
    ids, unsure = decide_labels(found, agreement(found, found), (3, 5), 0.05)
    assert ids.tolist() == [[3, 3, 0]] and unsure.tolist() == [[False, True, False]]


def test_a_tag_that_got_no_pixel_makes_its_likeliest_place_unsure() -> None:
    before = np.full((2, 4, 4), 0.9, np.float32)
    before[1], before[1, 1:3, 1:3] = 0.1, 0.4
    before[0] = 1 - before[1]
    ids, unsure = decide_labels(before, agreement(before, before), (2,), 0.05)
    assert not ids.any() and unsure[1:3, 1:3].all() and unsure.sum() == 4
    # A map that is as high everywhere does not say where.
    before[0], before[1] = 0.9, 0.1
    assert not decide_labels(before, agreement(before, before), (2,), 0.05)[1].any()


@given(MAPS)
def test_the_order_of_the_classes_does_not_matter(maps: np.ndarray) -> None:
    found = label_probabilities(maps, MaskSettings("rest"), (0.5,) * len(maps))
    turned = label_probabilities(maps[::-1], MaskSettings("rest"), (0.5,) * len(maps))
    assert np.allclose(found[1:], turned[:0:-1], atol=1e-6) and np.allclose(found[0], turned[0], atol=1e-6)
