from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tagseg.networks.segmenters import Segmenter
from tagseg.segment import windows
from tagseg.segment.infer import picture_probabilities
from tagseg.segment.windows import window_starts, window_weights, windowed_probabilities

Look = Callable[[np.ndarray], np.ndarray]


def looks(network: Segmenter, scales: tuple[float, ...] = (1.0,), flip: bool = False) -> Look:
    return partial(picture_probabilities, network, scales=scales, flip=flip)


def coloured(height: int, width: int) -> np.ndarray:
    """Return a picture of patches of 24 x 24 pixels in random colours."""
    patches = np.random.default_rng(0).integers(0, 256, (-(-height // 24), -(-width // 24), 3), np.uint8)
    return patches.repeat(24, 0).repeat(24, 1)[:height, :width]


def whole(network: Segmenter, picture: np.ndarray, flip: bool = False) -> np.ndarray:
    """Return the probabilities of a picture's cells, computed from the whole picture."""
    return F.avg_pool2d(torch.from_numpy(looks(network, flip=flip)(picture[None])), 4)[0].numpy()


@pytest.mark.parametrize("size", [(64, 64), (68, 200), (200, 68), (132, 148), (40, 300), (64, 68)])
@pytest.mark.parametrize(("window", "batch"), [(64, 1), (67, 3), (512, 2)])
def test_windows_give_the_same_as_the_whole_picture(
    size: tuple[int, int], window: int, batch: int, pixelwise: Segmenter
) -> None:
    picture = coloured(*size)
    found = windowed_probabilities(looks(pixelwise, flip=True), picture, window, batch)
    assert found.shape == (3, size[0] // 4, size[1] // 4)
    assert np.allclose(found, whole(pixelwise, picture, flip=True), atol=1e-5)


def test_windows_leave_no_seams(nearsighted: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = coloured(300, 260)
    expected, look = whole(nearsighted, picture), looks(nearsighted)
    blended = windowed_probabilities(look, picture, 128, 2)
    monkeypatch.setattr(windows, "window_weights", lambda cells: np.ones(cells, np.float32))
    averaged = windowed_probabilities(look, picture, 128, 2)
    worst, plain = (np.abs(found - expected).max() for found in (blended, averaged))
    assert worst < 0.01 and plain > 0.05  # without weights, the errors near the edges of the windows remain
    ordered = np.sort(expected, 0)
    clear = ordered[-1] - ordered[-2] > 0.01
    assert clear.mean() > 0.98 and (blended.argmax(0) == expected.argmax(0))[clear].all()


def test_the_order_of_windows_does_not_matter(nearsighted: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = coloured(200, 280)
    straight = windowed_probabilities(looks(nearsighted), picture, 96, 4)
    monkeypatch.setattr(windows, "window_starts", lambda *sizes: window_starts(*sizes)[::-1])
    assert np.allclose(windowed_probabilities(looks(nearsighted), picture, 96, 4), straight, atol=1e-6)


def test_at_most_a_batch_of_windows_is_computed_at_once(pixelwise: Segmenter) -> None:
    windowed_probabilities(looks(pixelwise, (0.5, 1.25), flip=True), coloured(400, 1000), 100, 3)
    assert isinstance(pixelwise.sizes, list)
    # Windows of 100 pixels, at half and at 1.25 times their size.
    assert {size[2:] for size in pixelwise.sizes} == {(52, 52), (124, 124)}
    assert max(size[0] for size in pixelwise.sizes) == 6  # three windows and their mirror images


@pytest.mark.parametrize(("length", "window"), [(64, 64), (68, 64), (112, 64), (116, 64), (1000, 64), (4608, 512)])
def test_windows_cover_a_side_and_overlap(length: int, window: int) -> None:
    starts = window_starts(length, window)
    assert starts[0] == 0 and starts[-1] + window == length and all(start % 4 == 0 for start in starts)
    steps = np.diff(starts)
    assert (steps > 0).all() and (steps <= window * 0.75 + 4).all()
    # One window fewer would not be enough.
    assert len(starts) == 1 or (length - window) / max(len(starts) - 2, 1e-9) > window * 0.75


def test_weights_fall_towards_both_edges() -> None:
    weights = window_weights(16)
    assert weights.min() > 0 and weights[0] < 0.01 and weights.max() > 0.98
    assert np.allclose(weights, weights[::-1]) and (np.diff(weights[:8]) > 0).all()
