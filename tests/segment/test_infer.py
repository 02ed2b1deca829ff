import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tagseg.networks.segmenters import Segmenter, empty_segmenter
from tagseg.segment import infer
from tagseg.segment.infer import picture_probabilities, probabilities, view_probabilities


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


def test_pictures_are_bytes_of_0_to_255(network: Segmenter) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    expected = probabilities(network, torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255, (1.0, 1.5), flip=True)
    assert np.allclose(picture_probabilities(network, pictures, (1.0, 1.5), flip=True), expected, atol=1e-5)


def test_each_view_of_a_picture_is_upright_and_small_ones_of_a_scale_are_one_call(
    pixelwise: Segmenter, network: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    views = ((1.0, False), (1.0, True), (0.75, False), (1.5, True))
    found = view_probabilities(network, picture, views)
    for (scale, mirrored), seen in zip(views, found, strict=True):
        given = picture[:, ::-1].copy() if mirrored else picture
        (alone,) = picture_probabilities(network, given[None], (scale,), flip=False)
        assert np.allclose(seen[..., ::-1] if mirrored else seen, alone, atol=1e-5)
    view_probabilities(pixelwise, picture, views)
    assert pixelwise.sizes == [(2, 3, 40, 60), (1, 3, 32, 44), (1, 3, 60, 92)]
    monkeypatch.setattr(infer, "MAX_PIXELS_WITH_MIRROR", 2000)
    assert np.allclose(view_probabilities(network, picture, views), found, atol=1e-5)
