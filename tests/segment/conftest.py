"""What tests of predictions share: a network that sees only what lies right beside a pixel."""

import pytest
import torch
from torch import Tensor, nn

from tagseg.segment.networks import Segmenter


class Local(Segmenter):
    """Scores of three ids from the mean colour of a pixel's neighbourhood of `reach` pixels to each side; what lies
    outside of the image is black. `sizes` are those of the images it was given."""

    def __init__(self, reach: int = 0) -> None:
        nn.Module.__init__(self)
        side = 2 * reach + 1
        self.mix = nn.Conv2d(3, 3, side, padding=reach, bias=False)
        self.mix.weight.data = 8 * torch.eye(3)[:, :, None, None].expand(3, 3, side, side) / side**2
        self.net, self.multiple, self.frozen_norms = nn.Identity(), 16, False
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape))
        scores: Tensor = self.mix(images)
        return scores

    def fitting_size(self, height: float, width: float) -> tuple[int, int]:
        """Take sides of any multiple of 4."""
        h, w = (max(int(side / 4 + 0.5), 1) * 4 for side in (height, width))
        return h, w


@pytest.fixture
def pixelwise() -> Local:
    """Return a network for which every pixel stands by itself."""
    return Local().eval()


@pytest.fixture
def nearsighted() -> Local:
    """Return a network that sees two pixels far, so that it is wrong beside an edge."""
    return Local(2).eval()
