import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tagseg.crf.dense_crf import dense_crf
from tagseg.masks import make as write
from tagseg.segment.label_pixels import Labels, candidates, label_pixels, refine
from tagseg.settings.crf import CrfSettings


def shares(ids: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return random probabilities of ids."""
    scores = torch.randn(ids, height, width, generator=torch.Generator().manual_seed(seed)) * 2
    return scores.softmax(0).numpy()


@pytest.mark.parametrize("strip", [1, 3000, 1 << 20])
def test_masks_are_those_of_the_whole_enlarged_at_once(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, size = shares(5, 12, 17), (61, 90)
    monkeypatch.setattr(write, "_STRIP", strip)
    whole = F.interpolate(torch.from_numpy(seen)[None], size, mode="bilinear", align_corners=False)[0].numpy()
    found = label_pixels(candidates(seen), size, 5)
    best, second = np.sort(whole, axis=0)[:-3:-1]
    clear = best - second > 1e-4
    assert found.mask.dtype == np.uint8 and clear.mean() > 0.99
    assert (found.mask == whole.argmax(0))[clear].all() and set(np.unique(found.mask)) == set(range(5))
    for i in range(5):
        assert found.area[i] == pytest.approx((whole.argmax(0) == i).mean(), abs=1e-3)
        assert found.confidence[i] == pytest.approx(best[whole.argmax(0) == i].mean(), abs=1e-3)


def test_area_and_confidence_by_hand() -> None:
    seen = np.array([[[0.5, 0.9, 0.2]], [[0.1, 0.1, 0.1]], [[0.4, 0.0, 0.7]]], np.float32)
    found = label_pixels(candidates(seen), (1, 3), 3)
    assert found.mask.tolist() == [[0, 0, 2]]
    assert found.area == pytest.approx((2 / 3, 0, 1 / 3)) and found.confidence == pytest.approx((0.7, 0, 0.7))


def test_an_id_that_is_second_everywhere_can_win_between_cells() -> None:
    # Half way between the cells 0 and 1 have 0.28, 2 has 0.44.
    seen = np.array([[[0.52, 0.04]], [[0.04, 0.52]], [[0.44, 0.44]]], np.float32)
    assert candidates(seen).ids == (0, 1, 2)
    assert label_pixels(candidates(seen), (1, 8), 3).mask.tolist() == [[0, 0, 0, 2, 2, 1, 1, 1]]


def test_ids_below_chance_everywhere_are_left_out() -> None:
    seen = np.full((4, 2, 2), 0.01, np.float32)
    seen[1] = 0.97
    assert candidates(seen).ids == (1,) and candidates(seen).decisive.shape == (1, 2, 2)
    # What is as likely as all others stays.
    assert candidates(np.full((3, 1, 1), 1 / 3, np.float32)).ids == (0, 1, 2)


def test_a_large_image_is_never_held_for_every_id() -> None:
    seen = shares(21, 96, 128)
    tracemalloc.start()
    found = label_pixels(candidates(seen), (1500, 2000), 21)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert found.mask.shape == (1500, 2000) and sum(found.area) == pytest.approx(1)
    assert peak < 60  # all ids at this size are 252 MB


def test_the_crf_refines_the_likeliest_ids_at_the_images_scale() -> None:
    pixels = np.full((40, 60, 3), 30, np.uint8)
    pixels[:, 33:] = 220
    image = Image.fromarray(pixels)
    seen = np.zeros((5, 40, 60), np.float32)
    seen[1], seen[3, :, 27:], seen[2] = 0.55, 0.8, 0.1  # the network's border is six pixels to the left of the edge
    seen /= seen.sum(0)
    labels = refine(seen, image, (40, 60), CrfSettings())
    assert labels.ids == (1, 3)
    # Kernels are given for 500 pixels, this image has 60.
    settings = CrfSettings(gaussian_sxy=3 * 60 / 500, bilateral_sxy=80 * 60 / 500)
    expected: np.ndarray = dense_crf(np.ascontiguousarray(seen[[1, 3]]), pixels, settings)
    assert np.allclose(labels.decisive, expected, atol=1e-5)
    found, plain = label_pixels(labels, (40, 60), 5), label_pixels(candidates(seen), (40, 60), 5)
    assert (plain.mask[:, 27:] == 3).all() and (found.mask[:, :33] == 1).all() and (found.mask[:, 33:] == 3).all()
    # Confidence stays the network's: the CRF is sure of nearly everything.
    assert found.confidence[3] == pytest.approx(seen[3, :, 33:].mean(), abs=1e-5) and expected[1, :, 33:].mean() > 0.95


def test_the_crf_works_at_640_pixels_and_fits_any_probabilities() -> None:
    image = Image.new("RGB", (1300, 900), (90, 120, 30))
    for size in ((90, 130), (900 // 4 * 3, 1300 // 4 * 3)):
        labels = refine(shares(3, *size), image, (900, 1300), CrfSettings(steps=1))
        assert labels.decisive.shape == labels.network.shape == (3, 443, 640)
        assert label_pixels(labels, (900, 1300), 3).mask.shape == (900, 1300)


def test_the_crf_has_nothing_to_do_with_one_id() -> None:
    seen = np.zeros((3, 4, 5), np.float32)
    seen[2] = 1
    labels = refine(seen, Image.new("RGB", (5, 4)), (4, 5), CrfSettings())
    assert (
        isinstance(labels, Labels)
        and labels.ids == (2,)
        and label_pixels(labels, (4, 5), 3).mask.tolist() == [[2] * 5] * 4
    )
