import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tagseg.data.records import VOID
from tagseg.evaluate.evaluate import evenly_spaced
from tagseg.masks.palette import shown_colours
from tagseg.report.pictures import describe_mask, map_overlay, mask_overlay


def decoded(uri):
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/png"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"))


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(0, []), (1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))],
)
def test_even_choice_by_hand(count, chosen):
    assert evenly_spaced(range(10), count) == chosen


@given(st.integers(2, 200), st.integers(2, 200))
def test_even_choice_has_steps_that_differ_by_one_at_most(length, count):
    chosen = evenly_spaced(range(length), count)
    steps = np.diff(chosen)
    assert len(chosen) == min(length, count) and chosen[0] == 0 and chosen[-1] == length - 1
    assert steps.min() >= 1 and steps.max() - steps.min() <= 1


@given(st.integers(1, 300), st.integers(1, 60))
def test_an_even_choice_of_the_same_size_from_an_even_choice_is_the_same(length, count):
    chosen = evenly_spaced(range(length), count)
    assert evenly_spaced(chosen, count) == chosen


def test_mask_overlay_shows_classes_clear_background_and_striped_unsure_pixels():
    mask = np.zeros((12, 24), dtype=np.uint8)
    mask[:, 6:12], mask[:, 12:] = 1, VOID
    pixels = decoded(mask_overlay(mask, 24, 12))
    assert (pixels[:, :6, 3] == 0).all()
    assert (pixels[:, 6:12] == (*shown_colours(1)[1], 255)).all()
    assert (pixels[:, 12:, 3] == 255).mean() == 0.5


def test_map_overlay_shows_the_highest_map_and_its_value():
    maps = np.zeros((2, 4, 4), dtype=np.uint8)
    maps[0, :, :2], maps[1, :, 2:] = 200, 100
    pixels = decoded(map_overlay(maps, np.array([1, 3]), 4, 4))
    assert pixels[0, 0].tolist() == [*shown_colours(3)[1], 200]
    assert pixels[0, 3].tolist() == [*shown_colours(3)[3], 100]


def test_a_mask_is_described_by_the_shares_of_its_classes():
    mask = np.array([[0, 0, 0, 0, 0, 2, 2, 2, 1, VOID]], dtype=np.uint8)
    assert describe_mask(mask, ["cat", "dog"]) == "background 50%, dog 30%, cat 10%, unsure 10%"
