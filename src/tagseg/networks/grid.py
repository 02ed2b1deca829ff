"""How the cells of a map lie in the image. This module imports no PyTorch.

In images that fit a network, cells lie in one of two regular ways. Cornered: cell (i, j) is centred on pixel (stride i,
stride j), as with padded odd kernels, and an image has `stride * n + 1` pixels per side. Otherwise cells tile the image
like patches. Even kernels that are dilated (ConvNeXt at stride 16) move all cells by a part of a cell.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """How cells lie: whether `cornered` or as tiles, and by what part of a cell all of them lie further to the right
    and down than that."""

    cornered: bool = False
    shift: float = 0.0
