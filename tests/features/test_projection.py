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
    assert np.isclose(found.lost, 1 - float(variances[:2].sum() / variances.sum()), atol=1e-6)
    expected = (centred @ vectors[:2].T / variances[:2].sqrt().mean()).float()
    stored = project(maps, found).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(stored.abs(), expected.abs(), atol=1e-4, rtol=1e-4)
    assert np.isclose(float(stored.std(0, correction=0).mean()), 1, atol=1e-3)


def test_cells_of_zeros_and_constant_cells_do_not_fail() -> None:
    moments = Moments(3, whole=False)
    moments.add(torch.zeros(5, 3))
    found = moments.projection(2)
    assert found.lost == 0 and torch.isfinite(project(torch.zeros(1, 3, 2, 2), found)).all()
