"""Where the cells of a feature map lie in the image (see `Grid`), measured by gradients; resizing that respects it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

GREY, NOISE = 0.75, 1e-3
"""The image that is measured with. Grey, since rectified layers have no gradient at zero; with a little noise, since a
maximum of equal values would always be the first."""

DRAWS = 2
"""Random weightings of the channels whose gradients are added."""

LEAST_SHIFT, SHIFT_STEP = 0.125, 1 / 32
"""Part of a cell below which cells count as regular, and what larger shifts are rounded to multiples of."""

LARGER = 320
"""Pixels per side of the image with which a shift that was found is measured again: at the middle of a small image an
irregular cell sees less far to one side."""


Pixels = int | torch.SymInt
"""A known side, or a symbol for any side, in an export."""


def resize_cells(
    maps: Float[Tensor, "b c h w"],
    size: Sequence[Pixels],
    cornered: bool,
    shift: float = 0.0,
    target_shift: float = 0.0,
) -> Float[Tensor, "b c H W"]:
    """Return maps at another (height, width) `size`, bilinear.

    Args:
        maps: values of cells.
        size: pixels, or cells of another stride.
        cornered: whether the corner cells lie on the corners of the target, or both tile the same area.
        shift: by what part of a cell the cells lie further to the right and down.
        target_shift: the same for the target, in cells of the target.
    """
    height, width = size
    if not shift and not target_shift:
        sides: Any = (height, width)
        return F.interpolate(maps, sides, mode="bilinear", align_corners=cornered)
    rows, columns = (_matrix(maps.shape[2 + axis], size[axis], cornered, shift, target_shift, maps) for axis in (0, 1))
    resized: Tensor = rows @ maps @ columns.T
    return resized


def _matrix(
    cells: Pixels, target: Pixels, cornered: bool, shift: float, target_shift: float, like: Tensor
) -> Float[Tensor, "target cells"]:
    """Return the matrix that resizes linearly along one side."""
    places = torch.arange(target, device=like.device, dtype=torch.float32) + target_shift
    corner: Any = places * ((cells - 1) / torch.sym_max(target - 1, 1))
    centres: Any = corner if cornered else (places + 0.5) * (cells / target) - 0.5
    # Like `F.interpolate`, beyond the outermost cells their value goes on.
    centres = (centres - shift).clamp(0, cells - 1)
    distance = (torch.arange(cells, device=like.device) - centres[:, None]).abs()
    weights: Tensor = (1 - distance).clamp_min(0).to(like.dtype)
    return weights


def measured_shift(module: nn.Module, last: Callable[[Any], Tensor], about: int, stride: int, cornered: bool) -> float:
    """Return the `Grid.shift` of the map that `last` takes from a module's output.

    The gradient of a cell's features says which pixels it sees, and its energy's centre where the cell lies. All
    kernels are made equal to their mirror images for this, so that the centre is that of the architecture, which single
    weights do not move; how strong each branch is stays as it is, but branches that start switched off are switched on.
    The image has an odd number of cells, about `about` pixels per side: a regular cell in its middle sees equally far
    in all directions.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        return 0.0  # built without memory, to see its shapes
    plain = {name: _plain(name, value) for name, value in module.named_parameters()}

    def measure(pixels: int, cells_around: int) -> list[float]:
        cells = pixels // stride // 2 * 2 + 1
        size = stride * (cells - cornered) + cornered
        noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        # And turned by half, so that a maximum of this noise does not lie to one side.
        images = (GREY + NOISE * torch.cat([noise, noise.flip(-1, -2)])).requires_grad_()
        maps = last(functional_call(module, plain, (images,)))
        places, found = torch.arange(size, dtype=torch.float64), []
        for beside in range(-cells_around, cells_around + 1):
            energy = _energy(maps, images, maps.shape[2] // 2 + beside)
            found.append((float((energy * places).sum() / energy.sum()) - (size - 1) / 2) / stride - beside)
        return found

    was_training = module.training
    module.eval()
    try:
        with torch.enable_grad():
            if not abs(measure(about, 0)[0]) > LEAST_SHIFT:  # also where the weights let nothing through
                return 0.0
            found = measure(max(about, LARGER), 1)
    finally:
        module.train(was_training)
    shift = found[1]
    # Attention within windows is centred on the window, whichever of its cells looks: that is not a place of the cells.
    even = max(found) - min(found) <= LEAST_SHIFT
    return round(shift / SHIFT_STEP) * SHIFT_STEP if even and LEAST_SHIFT < abs(shift) <= 1 else 0.0


def _plain(name: str, parameter: Tensor) -> Tensor:
    value = parameter.detach()
    if value.dim() < 2 and name.endswith((".weight", "gain")) and not value.any():
        return torch.ones_like(value)  # a norm or gain that starts at zero switches its branch off
    if value.dim() < 4 or value.shape[-1] == 1:
        return value
    across = (value + value.flip(-1)) / 2
    return (across + across.flip(-2)) / 2


def _energy(maps: Float[Tensor, "b d h w"], images: Float[Tensor, "b 3 s s"], cell: int) -> Float[Tensor, "s"]:
    """Return how much the pixels of each row, and of the column of its number, reach the features of cell (cell, cell)
    in all images."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(images.shape[-1], dtype=torch.float64)
    for _ in range(DRAWS):
        weighting = torch.randn(maps.shape[1], generator=generator)
        (gradient,) = torch.autograd.grad((maps[:, :, cell, cell] * weighting).sum(), images, retain_graph=True)
        energy = gradient.double().square().sum((0, 1))
        total += energy.sum(0) + energy.sum(1)
    return total
