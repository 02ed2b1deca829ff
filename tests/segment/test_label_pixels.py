import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tagseg.crf.dense_crf import dense_crf
from tagseg.masks import resize
from tagseg.segment.label_pixels import Candidates, label_pixels, likely_candidates, refine
from tagseg.settings.crf import CrfSettings


def shares(ids: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return random probabilities of ids."""
    scores = torch.randn(ids, height, width, generator=torch.Generator().manual_seed(seed)) * 2
    return scores.softmax(0).numpy()


@pytest.mark.parametrize("strip", [1, 3000, 1 << 20])
def test_strips_give_the_mask_of_the_whole_image(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, size = shares(5, 12, 17), (61, 90)
    monkeypatch.setattr(resize, "_STRIP", strip)
    whole = F.interpolate(torch.from_numpy(probabilities)[None], size, mode="bilinear", align_corners=False)[0].numpy()
    found = label_pixels(likely_candidates(probabilities), size, 5)
    best, second = np.sort(whole, axis=0)[:-3:-1]
    clear = best - second > 1e-4
    assert found.mask.dtype == np.uint8 and clear.mean() > 0.99
    assert (found.mask == whole.argmax(0))[clear].all() and set(np.unique(found.mask)) == set(range(5))
    for i in range(5):
        assert found.area[i] == pytest.approx((whole.argmax(0) == i).mean(), abs=1e-3)
        assert found.confidence[i] == pytest.approx(best[whole.argmax(0) == i].mean(), abs=1e-3)


def test_area_and_confidence_by_hand() -> None:
    probabilities = np.array([[[0.5, 0.9, 0.2]], [[0.1, 0.1, 0.1]], [[0.4, 0.0, 0.7]]], np.float32)
    found = label_pixels(likely_candidates(probabilities), (1, 3), 3)
    assert found.mask.tolist() == [[0, 0, 2]]
    assert found.area == pytest.approx((2 / 3, 0, 1 / 3)) and found.confidence == pytest.approx((0.7, 0, 0.7))


def test_an_id_that_is_second_in_every_cell_can_win_between_cells() -> None:
    # Halfway between the cells, ids 0 and 1 have 0.28 and id 2 has 0.44.
    probabilities = np.array([[[0.52, 0.04]], [[0.04, 0.52]], [[0.44, 0.44]]], np.float32)
    assert likely_candidates(probabilities).ids == (0, 1, 2)
    assert label_pixels(likely_candidates(probabilities), (1, 8), 3).mask.tolist() == [[0, 0, 0, 2, 2, 1, 1, 1]]


def test_ids_below_chance_everywhere_are_left_out() -> None:
    probabilities = np.full((4, 2, 2), 0.01, np.float32)
    probabilities[1] = 0.97
    assert likely_candidates(probabilities).ids == (1,) and likely_candidates(probabilities).scores.shape == (1, 2, 2)
    # An id that is exactly as likely as the others stays.
    assert likely_candidates(np.full((3, 1, 1), 1 / 3, np.float32)).ids == (0, 1, 2)


def test_a_large_image_is_never_in_memory_for_every_id() -> None:
    probabilities = shares(21, 96, 128)
    tracemalloc.start()
    found = label_pixels(likely_candidates(probabilities), (1500, 2000), 21)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert found.mask.shape == (1500, 2000) and sum(found.area) == pytest.approx(1)
    assert peak < 60  # all ids at this size would take 252 MB


def test_the_crf_refines_the_likeliest_ids_at_the_images_scale() -> None:
    pixels = np.full((40, 60, 3), 30, np.uint8)
    pixels[:, 33:] = 220
    image = Image.fromarray(pixels)
    probabilities = np.zeros((5, 40, 60), np.float32)
    # The border of the network is six pixels to the left of the edge.
    probabilities[1], probabilities[3, :, 27:], probabilities[2] = 0.55, 0.8, 0.1
    probabilities /= probabilities.sum(0)
    candidates = refine(probabilities, image, (40, 60), CrfSettings())
    assert candidates.ids == (1, 3)
    # The settings are for images of 500 pixels; this one has 60.
    settings = CrfSettings(gaussian_sxy=3 * 60 / 500, bilateral_sxy=80 * 60 / 500)
    expected: np.ndarray = dense_crf(np.ascontiguousarray(probabilities[[1, 3]]), pixels, settings)
    assert np.allclose(candidates.scores, expected, atol=1e-5)
    found, plain = label_pixels(candidates, (40, 60), 5), label_pixels(likely_candidates(probabilities), (40, 60), 5)
    assert (plain.mask[:, 27:] == 3).all() and (found.mask[:, :33] == 1).all() and (found.mask[:, 33:] == 3).all()
    # Confidence is still the network's, because the CRF is nearly certain everywhere.
    assert (
        found.confidence[3] == pytest.approx(probabilities[3, :, 33:].mean(), abs=1e-5)
        and expected[1, :, 33:].mean() > 0.95
    )


def test_the_crf_works_at_640_pixels_whatever_the_size_of_the_probabilities() -> None:
    image = Image.new("RGB", (1300, 900), (90, 120, 30))
    for size in ((90, 130), (900 // 4 * 3, 1300 // 4 * 3)):
        candidates = refine(shares(3, *size), image, (900, 1300), CrfSettings(steps=1))
        assert candidates.scores.shape == candidates.probabilities.shape == (3, 443, 640)
        assert label_pixels(candidates, (900, 1300), 3).mask.shape == (900, 1300)


def test_the_crf_is_skipped_for_a_single_id() -> None:
    probabilities = np.zeros((3, 4, 5), np.float32)
    probabilities[2] = 1
    candidates = refine(probabilities, Image.new("RGB", (5, 4)), (4, 5), CrfSettings())
    assert (
        isinstance(candidates, Candidates)
        and candidates.ids == (2,)
        and label_pixels(candidates, (4, 5), 3).mask.tolist() == [[2] * 5] * 4
    )
