"""The matrices that resize are compared with PyTorch's interpolation at many sizes, odd ones too."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tagseg.networks.registration import resize_cells
from tagseg.segment.views import returning, scaling

SIZES = [(32, 48), (33, 21), (1, 7), (40, 1), (101, 57), (64, 64), (47, 83), (19, 96), (72, 35), (55, 110)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("scale", "antialias"), [(0.4, True), (0.75, True), (1.0, False), (0.9, False), (1.3, False)])
def test_pictures_are_resized_as_by_pytorch(size: tuple[int, int], scale: float, antialias: bool) -> None:
    pixels = np.random.default_rng(0).random((3, *size), np.float32)
    target = tuple(max(round(side * scale / 16), 2) * 16 for side in size)
    expected = F.interpolate(torch.from_numpy(pixels)[None], target, mode="bilinear", antialias=antialias)[0]
    rows, columns = (scaling(*pair, antialias) for pair in zip(size, target, strict=True))
    assert rows.dtype == np.float32 and np.allclose(rows @ pixels @ columns.T, expected, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cornered", [True, False])
def test_scores_come_back_as_by_pytorch(size: tuple[int, int], cornered: bool) -> None:
    scores = np.random.default_rng(1).standard_normal((5, 6, 9)).astype(np.float32)
    fitting = 6 * 4, 9 * 4
    large = F.interpolate(torch.from_numpy(scores)[None], fitting, mode="bilinear", align_corners=cornered)
    expected = F.interpolate(large, size, mode="bilinear", align_corners=False)[0]
    rows, columns = (returning(*one, cornered) for one in zip((6, 9), fitting, size, strict=True))
    assert np.allclose(rows @ scores @ columns.T, expected, atol=1e-5)
    # Scores whose cells lie apart from regular places.
    large = resize_cells(torch.from_numpy(scores)[None], fitting, cornered, 0.5)
    expected = F.interpolate(large, size, mode="bilinear", align_corners=False)[0]
    rows, columns = (returning(*one, cornered, 0.5) for one in zip((6, 9), fitting, size, strict=True))
    assert np.allclose(rows @ scores @ columns.T, expected, atol=1e-5)
