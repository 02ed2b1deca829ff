"""Views and shares are compared with PyTorch's interpolation at many sizes, odd ones too."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tagseg.segment.views import add_shares, scaled_views

SIZES = [(32, 48), (33, 21), (1, 7), (40, 1), (101, 57), (64, 64), (47, 83), (19, 96), (72, 35), (55, 110)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("scale", "antialias"), [(0.4, True), (0.75, True), (1.0, False), (0.9, False), (1.3, False)])
def test_views_are_pytorchs(size: tuple[int, int], scale: float, antialias: bool) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    target = tuple(max(round(side * scale / 16), 2) * 16 for side in size)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    expected = F.interpolate(pixels, target, mode="bilinear", align_corners=False, antialias=antialias)[0]
    upright, mirrored = scaled_views(picture, target, antialias, mirror=True)  # type: ignore[arg-type]
    assert np.allclose(upright, expected, atol=1e-4) and np.array_equal(mirrored, upright[..., ::-1])
    assert np.array_equal(scaled_views(picture, target, antialias, mirror=False)[0], upright)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cornered", [True, False])
def test_shares_are_the_softmax_of_enlarged_scores(size: tuple[int, int], cornered: bool) -> None:
    scores = (4 * np.random.default_rng(1).standard_normal((2, 5, 6, 9))).astype(np.float32)
    fitting, total = (6 * 4, 9 * 4), np.ones((5, *size), np.float32)
    add_shares(scores, fitting, cornered, total)
    large = F.interpolate(torch.from_numpy(scores), fitting, mode="bilinear", align_corners=cornered)
    shares = F.interpolate(large, size, mode="bilinear", align_corners=False).softmax(1)
    assert np.allclose(total - 1, shares[0] + shares[1].flip(-1), atol=1e-4)
