import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage

from tagseg.rca.network import Maps, build_network
from tagseg.report.bank_view import Memory, attended_areas, connected
from tagseg.settings.rca import RcaSettings
from tagseg.settings.train import TrainSettings


def test_connected_by_hand():
    labels = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    areas = connected(labels)
    assert [area.astype(int).tolist() for area in areas] == [
        [[1, 1, 0], [0, 1, 0], [0, 0, 0]],
        [[0, 0, 1], [0, 0, 1], [0, 1, 1]],
        [[0, 0, 0], [1, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [1, 0, 0]],
    ]


@given(arrays.arrays(np.int64, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 2)))
def test_connected_against_scipy(labels):
    expected = []
    for label in np.unique(labels):
        numbered, count = ndimage.label(labels == label)
        expected += [numbered == i for i in range(1, count + 1)]
    found = connected(labels)
    assert sorted(area.tobytes() for area in found) == sorted(area.tobytes() for area in expected)
    firsts = [int(np.flatnonzero(area)[0]) for area in found]
    assert firsts == sorted(firsts)


@pytest.fixture
def network():
    """A network that sees the same features in every image: 4 x 6 cells, the left third of class 1, the rest of
    background but for a cell of class 2."""
    train = TrainSettings(backbone="test_resnet", weights="random", neck=3)
    network = build_network(2, train, RcaSettings(layer="last", slots=4, prototypes=2, aggregation=False)).eval()
    features = torch.zeros(1, 3, 4, 6)
    features[0, 0, :, 2:] = 2.0
    features[0, 1, :, :2] = 5.0
    features[0, :, 0, 5] = torch.tensor([0.0, 0.0, 1.0])
    maps = torch.zeros(1, 2, 4, 6)
    network.forward = lambda images: Maps(features, maps, maps.mean((2, 3)), maps.mean((2, 3)), lambda: (maps, None))
    return network


@pytest.fixture
def memory():
    """Class 1 has a prototype that fits and one that does not; background and class 2 one each."""
    prototypes = torch.zeros(3, 2, 3)
    prototypes[0, 0] = prototypes[1, 0] = torch.tensor([1.0, 0.0, 0.0])
    prototypes[1, 0] = torch.tensor([0.0, 0.6, 0.8])
    prototypes[1, 1] = torch.tensor([0.0, 1.0, 0.0])
    prototypes[2, 0] = torch.tensor([0.0, 0.0, 1.0])
    exists = torch.tensor([[True, False], [True, True], [True, False]])
    return Memory(4, torch.tensor([4, 4, 4]), prototypes, exists, torch.ones(3, 2))


def test_areas_attend_as_computed_by_hand(network, memory):
    one, background = attended_areas(network, memory, Image.new("RGB", (96, 64)), 320)
    assert (one.entry, one.prototype, background.entry, background.prototype) == (1, 1, 0, 0)
    assert one.cells.tolist() == [[True, True, False, False, False, False]] * 4
    assert background.cells.sum() == 15 and not background.cells[0, 5], "the single cell of class 2 is left out"
    weights = {"background": math.exp(0), "fits less": math.exp(6), "fits": math.exp(10), "two": math.exp(0)}
    total = sum(weights.values())
    expected = [weights["background"] / total, (weights["fits"] + weights["fits less"]) / total, weights["two"] / total]
    assert one.shares.tolist() == pytest.approx(expected, rel=1e-4)
    assert one.similarity == pytest.approx(1.0)
    assert float(background.shares.sum()) == pytest.approx(1.0)
