from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tagseg.networks.segmenters import Segmenter, empty_segmenter
from tagseg.segment import infer
from tagseg.segment.infer import probabilities, window_starts, window_weights, windowed_probabilities


@pytest.fixture(scope="module")
def network() -> Segmenter:
    torch.manual_seed(0)
    return empty_segmenter("test_resnet", 4, 16).eval()


@pytest.mark.parametrize("size", [(40, 56), (33, 47), (1, 60), (60, 1), (1, 1)])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.25)])
def test_probabilities_sum_to_one_at_any_size(
    size: tuple[int, int], scales: tuple[float, ...], network: Segmenter
) -> None:
    seen = probabilities(network, torch.rand(2, 3, *size), scales, flip=True)
    assert seen.shape == (2, 4, *size) and seen.min() >= 0
    assert torch.allclose(seen.sum(1), torch.ones(2, *size), atol=1e-5)


def test_probabilities_at_one_scale_are_the_softmax_of_the_network(network: Segmenter) -> None:
    pictures = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        expected = network(pictures).softmax(1)
    assert torch.allclose(probabilities(network, pictures, (1.0,), flip=False), expected, atol=1e-5)


def test_probabilities_are_the_mean_over_scales_and_mirror_images(network: Segmenter) -> None:
    pictures, looks = torch.rand(1, 3, 36, 50), []
    with torch.no_grad():
        for size in ((32, 32), (48, 80)):  # 0.75 and 1.5 times the size, rounded to multiples of 16
            scaled = F.interpolate(pictures, size, mode="bilinear", antialias=size[0] < 36)
            for mirrored in (False, True):
                scores = network(scaled.flip(-1) if mirrored else scaled)
                scores = F.interpolate(scores, (36, 50), mode="bilinear")
                looks.append((scores.flip(-1) if mirrored else scores).softmax(1))
    found = probabilities(network, pictures, (0.75, 1.5), flip=True)
    assert torch.allclose(found, torch.stack(looks).mean(0), atol=1e-5)


def test_probabilities_of_a_mirrored_image_are_mirrored(network: Segmenter) -> None:
    picture = torch.rand(1, 3, 32, 48)
    straight, mirrored = (probabilities(network, p, (1.0, 1.5), flip=True) for p in (picture, picture.flip(-1)))
    assert torch.allclose(mirrored.flip(-1), straight, atol=1e-5) and not torch.allclose(mirrored, straight, atol=5e-5)


def test_a_cpu_computes_a_large_image_and_its_mirror_image_one_after_the_other(
    pixelwise: Segmenter, network: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = torch.rand(2, 3, 40, 60)
    together = probabilities(network, pictures, (0.75, 1.5), flip=True)
    monkeypatch.setattr(infer, "MAX_PIXELS_WITH_MIRROR", 5000)
    # 0.75: 2 x 32 x 44 pixels; 1.5: 2 x 60 x 92.
    assert torch.allclose(probabilities(network, pictures, (0.75, 1.5), flip=True), together, atol=1e-5)
    probabilities(pixelwise, pictures, (0.75, 1.5), flip=True)
    assert pixelwise.sizes == [(4, 3, 32, 44), (2, 3, 60, 92), (2, 3, 60, 92)]


def test_an_image_has_the_same_probabilities_in_a_batch(network: Segmenter) -> None:
    pictures = torch.rand(3, 3, 40, 56)
    alone = torch.cat([probabilities(network, one[None], (0.75, 1.0), flip=True) for one in pictures])
    assert torch.allclose(probabilities(network, pictures, (0.75, 1.0), flip=True), alone, atol=1e-5)


def test_bf16_computes_in_half_precision_and_returns_full_precision(network: Segmenter) -> None:
    pictures, kinds = torch.rand(1, 3, 32, 48), []
    handle = network.get_submodule("net.segmentation_head").register_forward_hook(
        lambda *call: kinds.append(call[2].dtype)
    )
    half, full = (probabilities(network, pictures, (1.0,), False, kind) for kind in ("bf16", "fp32"))
    handle.remove()
    assert kinds == [torch.bfloat16, torch.float32] and half.dtype == torch.float32
    assert torch.allclose(half, full, atol=0.05) and not torch.equal(half, full)


def looks(network: Segmenter, scales: tuple[float, ...] = (1.0,), flip: bool = False) -> partial[Tensor]:
    def look(pictures: Tensor) -> Tensor:
        return probabilities(network, pictures.float() / 255, scales, flip)

    return partial(look)


def coloured(height: int, width: int) -> Tensor:
    """Return a picture of patches of 24 x 24 pixels in random colours."""
    patches = torch.randint(0, 256, (1, 3, -(-height // 24), -(-width // 24)), dtype=torch.uint8)
    return patches.repeat_interleave(24, 2).repeat_interleave(24, 3)[0, :, :height, :width]


def whole(network: Segmenter, picture: Tensor, flip: bool = False) -> Tensor:
    """Return the probabilities of a picture's cells, computed from the whole picture."""
    return F.avg_pool2d(looks(network, flip=flip)(picture[None]), 4)[0]


@pytest.mark.parametrize("size", [(64, 64), (68, 200), (200, 68), (132, 148), (40, 300), (64, 68)])
@pytest.mark.parametrize(("window", "batch"), [(64, 1), (67, 3), (512, 2)])
def test_windows_give_the_same_as_the_whole_picture(
    size: tuple[int, int], window: int, batch: int, pixelwise: Segmenter
) -> None:
    picture = coloured(*size)
    found = windowed_probabilities(looks(pixelwise, flip=True), picture, window, batch)
    assert found.shape == (3, size[0] // 4, size[1] // 4)
    assert torch.allclose(found, whole(pixelwise, picture, flip=True), atol=1e-5)


def test_windows_leave_no_seams(nearsighted: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = coloured(300, 260)
    expected, look = whole(nearsighted, picture), looks(nearsighted)
    blended = windowed_probabilities(look, picture, 128, 2)
    monkeypatch.setattr(infer, "window_weights", torch.ones)
    averaged = windowed_probabilities(look, picture, 128, 2)
    worst, plain = ((found - expected).abs().max() for found in (blended, averaged))
    assert worst < 0.01 and plain > 0.05  # without weights, the errors near the edges of the windows remain
    clear = expected.amax(0) - expected.topk(2, 0).values[1] > 0.01
    assert clear.float().mean() > 0.98 and (blended.argmax(0) == expected.argmax(0))[clear].all()


def test_the_order_of_windows_does_not_matter(nearsighted: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = coloured(200, 280)
    straight = windowed_probabilities(looks(nearsighted), picture, 96, 4)
    monkeypatch.setattr(infer, "window_starts", lambda *sizes: window_starts(*sizes)[::-1])
    assert torch.allclose(windowed_probabilities(looks(nearsighted), picture, 96, 4), straight, atol=1e-6)


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
    assert torch.allclose(weights, weights.flip(0)) and (weights[:8].diff() > 0).all()
