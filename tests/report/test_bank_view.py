from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tagseg.data.records import Sample
from tagseg.rca.network import build_network
from tagseg.rca.regions import mine_regions, pool_regions
from tagseg.report.bank_view import (
    NOTHING,
    Memory,
    NearestRegions,
    choose_samples,
    closest_pairs,
    compare,
    find_regions,
    slot_shares,
)
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.training.loading import to_tensor

E, K, S, D = 4, 3, 5, 6


def random_memory(seed):
    """A memory of four entries, with gaps; the last entry has nothing at all."""
    generator = torch.Generator().manual_seed(seed)
    exists = torch.rand(E, K, generator=generator) > 0.4
    exists[-1] = False
    prototypes = F.normalize(torch.randn(E, K, D, generator=generator), dim=2) * exists[..., None]
    return Memory(S, torch.full((E,), S), prototypes, exists, torch.zeros(E, K))


@given(st.integers(0, 1000))
def test_slot_shares_against_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    memory = random_memory(seed)
    slots = F.normalize(torch.randn(E, S, D, generator=generator), dim=2)
    written = torch.arange(S) < torch.randint(0, S + 1, (E, 1), generator=generator)
    expected = torch.zeros(E, K)
    for e in range(E):
        for s in range(S):
            cosines = {p: float(slots[e, s] @ memory.prototypes[e, p]) for p in range(K) if memory.exists[e, p]}
            if written[e, s] and cosines:
                expected[e, max(cosines, key=cosines.get)] += 1 / int(written[e].sum())
    torch.testing.assert_close(slot_shares(slots, written, memory.prototypes, memory.exists), expected)


@given(st.integers(0, 1000))
def test_closest_pairs_against_loops(seed):
    memory = random_memory(seed)
    expected = {}
    for a in range(E):
        for b in range(a + 1, E):
            cosines = [
                (float(memory.prototypes[a, p] @ memory.prototypes[b, q]), (p, q))
                for p in range(K)
                for q in range(K)
                if memory.exists[a, p] and memory.exists[b, q]
            ]
            if cosines:
                expected[a, b] = max(cosines)
    pairs = closest_pairs(memory)
    assert {pair.entries for pair in pairs} == set(expected)
    for pair in pairs:
        cosine, prototypes = expected[pair.entries]
        assert pair.similarity == pytest.approx(cosine, abs=1e-6) and pair.prototypes == prototypes
    assert [pair.similarity for pair in pairs] == sorted((pair.similarity for pair in pairs), reverse=True)


@given(st.integers(0, 1000))
def test_regions_are_compared_as_loops_would(seed):
    memory = random_memory(seed)
    embeddings = 3 * torch.randn(7, D, generator=torch.Generator().manual_seed(seed + 1))
    labels = torch.arange(7) % E
    similarity, nearest = compare(embeddings, labels, memory)
    for n, embedding in enumerate(F.normalize(embeddings, dim=1)):
        cosine = {(e, p): float(embedding @ memory.prototypes[e, p]) for e, p in memory.exists.nonzero().tolist()}
        for p in range(K):
            expected = cosine.get((int(labels[n]), p), NOTHING)
            assert float(similarity[n, p]) == pytest.approx(expected, abs=1e-6)
        if cosine:
            assert int(nearest[n]) == max(cosine, key=cosine.get)[0]
        else:
            assert int(nearest[n]) == int(labels[n])


def test_of_equally_near_entries_a_region_belongs_to_its_own():
    prototypes = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    memory = Memory(
        1, torch.ones(3, dtype=torch.long), prototypes, torch.ones(3, 1, dtype=torch.bool), torch.ones(3, 1)
    )
    embeddings, labels = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1, 2])
    assert compare(embeddings, labels, memory)[1].tolist() == [0, 1, 0]


def test_members_and_closest_by_hand():
    seen = NearestRegions(
        tuple(Sample(str(i), Path(), (1,)) for i in range(4)),
        tuple(torch.ones(1, 1, dtype=torch.bool) for _ in range(4)),
        torch.tensor([1, 1, 2, 1]),
        torch.tensor([[0.5, 0.4], [0.9, 0.1], [1.0, 0.0], [0.3, 0.6]]),
        torch.tensor([1, 1, 2, 1]),
    )
    assert seen.closest(1, 0) == [1, 0, 3] and seen.closest(1, 1) == [3, 0, 1]
    assert seen.members(1, 0) == [1, 0] and seen.members(1, 1) == [3]
    assert seen.closest(0, 0) == [] and seen.members(2, 1) == []


def test_images_are_chosen_evenly_over_every_class():
    samples = [Sample(str(i), Path(), (1, 2) if i == 4 else (1 + i % 2,)) for i in range(10)]
    assert [sample.id for sample in choose_samples(samples, 2, 2)] == ["0", "1", "8", "9"]
    assert [sample.id for sample in choose_samples(samples, 2, 3)] == ["0", "1", "4", "8", "9"]
    assert choose_samples(samples, 3, 99) == samples


def test_regions_are_those_of_the_training(tmp_path):
    pixels = (torch.rand(48, 80, 3) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rca = RcaSettings(layer="last", region_rule="peak", region_threshold=0.4, prototypes=2, slots=4)
    train = TrainSettings(backbone="test_resnet", weights="random", neck=D)
    settings = Settings(train=train, rca=rca, localise=LocaliseSettings(max_side=64))
    network = build_network(2, train, rca).eval()
    prototypes, exists = F.normalize(torch.randn(3, 2, D), dim=2), torch.ones(3, 2, dtype=torch.bool)
    memory = Memory(4, torch.full((3,), 4), prototypes, exists, torch.full((3, 2), 0.5))
    seen = find_regions(network, memory, [Sample("a", tmp_path / "a.png", (2,))], settings)
    # 80 x 48 pixels reduced to 64 wide, then to what cells of 16 pixels cover.
    h, w = network.backbone.fitting_size(48 * 0.8, 64.0)
    with torch.no_grad():
        maps = network(to_tensor(Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR))[None])
    regions = mine_regions(maps.coarse, torch.tensor([[False, True]]), threshold=0.4)
    embeddings = F.normalize(pool_regions(maps.features, regions), dim=1)
    assert seen.label.tolist() == regions.label.tolist() and set(seen.label.tolist()) <= {0, 2}
    assert [sample.id for sample in seen.samples] == ["a"] * len(seen.label) and len(seen.label) > 0
    for n, label in enumerate(seen.label.tolist()):
        assert torch.equal(seen.cells[n], regions.cells[n])
        torch.testing.assert_close(seen.similarity[n], memory.prototypes[label] @ embeddings[n])
