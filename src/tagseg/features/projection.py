"""Principal components of a layer's cells: what the cache keeps instead of all channels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """How the cells of a layer are turned into what the cache keeps.

    A cell is divided by its length, `mean` is subtracted, and what is left is multiplied by `components` (None: all
    channels are kept) and divided by `deviation`, the mean standard deviation of the components. `lost` is the share of
    the variance that the components do not have, measured on images from which they were not computed. The cell's
    length, divided by the mean `length`, follows as one more channel: direction says what a cell shows, length how much
    of it.
    """

    mean: Float[Tensor, "d"]
    components: Float[Tensor, "d k"] | None
    deviation: float
    lost: float
    length: float = 1.0


class Moments:
    """Sums over the cells of a layer, from which a projection is computed."""

    def __init__(self, channels: int, whole: bool) -> None:
        """Start with no cells; `whole`: all channels are kept, so that variances are enough and no covariances."""
        self.count = 0
        self.lengths = 0.0
        self.whole = whole
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.products = torch.zeros(channels if whole else (channels, channels), dtype=torch.float64)

    def add(self, cells: Float[Tensor, "n d"]) -> None:
        """Add cells, each divided by its length."""
        self.lengths += float(cells.float().norm(dim=-1).sum())
        cells = unit(cells.float()).cpu()
        self.count += len(cells)
        self.total += cells.sum(0, dtype=torch.float64)
        self.products += cells.square().sum(0) if self.whole else cells.T @ cells

    def plus(self, other: "Moments") -> "Moments":
        """Return the moments of the cells of both."""
        both = Moments(len(self.total), self.whole)
        both.count, both.lengths = self.count + other.count, self.lengths + other.lengths
        both.total, both.products = self.total + other.total, self.products + other.products
        return both

    def projection(self, channels: int, lost: float = 0.0) -> Projection:
        """Return the projection to the `channels` components with most variance (to all channels if `whole`)."""
        count = max(self.count, 1)
        mean, length = self.total / count, max(self.lengths / count, 1e-12)
        if self.whole:
            variances = (self.products / count - mean.square()).clamp_min(0)
            return Projection(mean.float(), None, _deviation(variances), 0.0, length)
        values, vectors = torch.linalg.eigh(self.products / count - torch.outer(mean, mean))
        values, vectors = values.flip(0)[:channels].clamp_min(0), vectors.flip(1)[:, :channels]
        # The sign of a component is arbitrary: its largest entry is positive.
        signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        return Projection(mean.float(), (vectors * signs).float().contiguous(), _deviation(values), lost, length)

    def lost(self, projection: Projection) -> float:
        """Return the share of the variance of these cells that a projection, computed on others, loses."""
        if projection.components is None or not self.count:
            return 0.0
        mean, components = projection.mean.double(), projection.components.double()
        cross = torch.outer(self.total / self.count, mean)
        squares = self.products / self.count - cross - cross.T + torch.outer(mean, mean)
        everything = float(squares.trace())
        kept = float((components * (squares @ components)).sum())
        return min(max(1 - kept / everything, 0.0), 1.0) if everything > 0 else 0.0


def project(maps: Float[Tensor, "b d h w"], projection: Projection) -> Float[Tensor, "b k h w"]:
    """Return what the cache keeps of a layer's maps: k - 1 components of each cell, and its length."""
    whole = maps.float().permute(0, 2, 3, 1)
    cells = unit(whole) - projection.mean
    if projection.components is not None:
        cells = cells @ projection.components
    length = whole.norm(dim=-1, keepdim=True) / projection.length
    return torch.cat([cells / projection.deviation, length], -1).permute(0, 3, 1, 2)


def unit(cells: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Return cells divided by their length; a cell of zeros stays one."""
    return F.normalize(cells, dim=-1)


def projection_tensors(names: Sequence[str], projections: Sequence[Projection]) -> dict[str, Tensor]:
    """Return the projections of layers as named tensors."""
    tensors = {}
    for name, one in zip(names, projections, strict=True):
        tensors[f"{name}/mean"] = one.mean.cpu()
        tensors[f"{name}/scale"] = torch.tensor([one.deviation, one.lost, one.length], dtype=torch.float64)
        if one.components is not None:
            tensors[f"{name}/components"] = one.components.cpu()
    return tensors


def projection_of(tensors: dict[str, Tensor], name: str) -> Projection:
    """Return the projection of a layer from named tensors."""
    deviation, lost, length = tensors[f"{name}/scale"].tolist()
    return Projection(tensors[f"{name}/mean"], tensors.get(f"{name}/components"), deviation, lost, length)


def _deviation(variances: Float[Tensor, "k"]) -> float:
    return max(float(variances.sqrt().mean()), 1e-6)
