import numpy as np
import torch

from tagseg.features.projection import Moments, project


def test_components_of_cells_worked_by_another_way() -> None:
    """A singular value decomposition of the centred cells."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 6, 5, 4, generator=generator) * torch.tensor([5.0, 3, 2, 1, 0.5, 0.1])[:, None, None]
    cells = maps.permute(0, 2, 3, 1).flatten(0, 2)
    moments = Moments(6, whole=False)
    for part in cells.split(17):
        moments.add(part)
    found = moments.projection(2)
    lengths = cells / cells.norm(dim=1, keepdim=True)
    centred = (lengths - lengths.mean(0)).double()
    _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
    variances = values**2 / len(cells)
    assert np.isclose(moments.lost(found), 1 - float(variances[:2].sum() / variances.sum()), atol=1e-6)
    expected = (centred @ vectors[:2].T / variances[:2].sqrt().mean()).float()
    stored, length = project(maps, found).permute(0, 2, 3, 1).flatten(0, 2).split([2, 1], dim=1)
    torch.testing.assert_close(length, cells.norm(dim=1, keepdim=True) / cells.norm(dim=1).mean())
    torch.testing.assert_close(stored.abs(), expected.abs(), atol=1e-4, rtol=1e-4)
    assert np.isclose(float(stored.std(0, correction=0).mean()), 1, atol=1e-3)


def test_cells_of_zeros_and_constant_cells_do_not_fail() -> None:
    moments = Moments(3, whole=False)
    moments.add(torch.zeros(5, 3))
    found = moments.projection(2)
    assert moments.lost(found) == 0 and torch.isfinite(project(torch.zeros(1, 3, 2, 2), found)).all()


def test_what_is_lost_is_measured_on_other_cells() -> None:
    first, second = torch.randn(50, 8), torch.randn(40, 8) + torch.arange(8)
    both = [Moments(8, whole=False) for _ in range(3)]
    for moments, cells in zip(both, (first, second, torch.cat([first, second])), strict=True):
        moments.add(cells)
    found = both[0].projection(3)
    assert found.components is not None
    away = second / second.norm(dim=1, keepdim=True) - found.mean
    rest = away - away @ found.components @ found.components.T
    assert np.isclose(both[1].lost(found), float(rest.square().sum() / away.square().sum()), atol=1e-5)
    together = both[0].plus(both[1])
    torch.testing.assert_close(together.products, both[2].products, atol=1e-5, rtol=1e-5)
    assert together.count == 90
