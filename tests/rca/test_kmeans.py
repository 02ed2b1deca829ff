import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from sklearn.cluster import KMeans
from torch import Tensor

from tagseg.rca import kmeans as module
from tagseg.rca.bank import Bank
from tagseg.rca.kmeans import kmeans

few = settings(max_examples=20)
seeds = st.integers(0, 9999)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def everything(points: Tensor) -> Tensor:
    return torch.ones(points.shape[:2], dtype=torch.bool)


def slow_inertia(points: Tensor, centres: Tensor) -> float:
    """Sum over the points of the squared distance to the nearest centre, in double precision."""
    return sum(((point - centres.double()) ** 2).sum(1).min().item() for point in points.double())


def blobs(seed: int, entries: int, per_blob: int = 12, k: int = 10, d: int = 8) -> Tensor:
    generator = seeded(seed)
    middle = torch.randn(entries, k, 1, d, generator=generator) * 4
    points = middle + 0.4 * torch.randn(entries, k, per_blob, d, generator=generator)
    return points.flatten(1, 2)[:, torch.randperm(k * per_blob, generator=generator)]


def cloud(seed: int, entries: int) -> Tensor:
    return F.normalize(torch.randn(entries, 240, 8, generator=seeded(seed)), dim=2)


@pytest.mark.parametrize(
    ("points", "worst", "mean"),
    [(blobs(0, 12), 1.01, 1.001), (cloud(0, 12), 1.06, 1.03)],
    ids=["blobs", "random"],
)
def test_as_good_as_the_best_of_ten_runs_of_scikit_learn(points: Tensor, worst: float, mean: float) -> None:
    """On blobs a plain k-means++ start puts two centres into one blob in every third run."""
    centres, exists = kmeans(points, everything(points), 10, seeded(0))
    assert exists.all()
    ratios = []
    for own, found in zip(points, centres, strict=True):
        best = KMeans(10, n_init=10, random_state=0).fit(own.double().numpy())
        ratios.append(slow_inertia(own, found) / best.inertia_)
    assert max(ratios) < worst
    assert sum(ratios) / len(ratios) < mean


@pytest.mark.parametrize("d", [4, 16, 64])
def test_inertia_is_scikit_learns_or_better_on_random_data(d: int) -> None:
    """One run of scikit-learn's own start each; an optimum is local, so single entries may fall a little behind."""
    points = F.normalize(torch.randn(24, 100, d, generator=seeded(d)), dim=2)
    centres, _ = kmeans(points, everything(points), 8, seeded(0), iterations=100)
    ratios = []
    for i, (own, found) in enumerate(zip(points, centres, strict=True)):
        run = KMeans(8, n_init=1, init="k-means++", random_state=i).fit(own.double().numpy())
        ratios.append(slow_inertia(own, found) / run.inertia_)
    assert sum(ratios) / len(ratios) < 1.0005
    assert max(ratios) < 1.15


def test_inertia_does_not_depend_on_where_the_points_lie() -> None:
    points = blobs(3, 4)
    near, _ = kmeans(points, everything(points), 10, seeded(0))
    far, _ = kmeans(points + 1000, everything(points), 10, seeded(0))
    for own, one, two in zip(points, near, far, strict=True):
        assert slow_inertia(own + 1000, two) == pytest.approx(slow_inertia(own, one), rel=1e-2)


def test_centre_that_lost_its_points_stays_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.tensor([[[-1.0, 0.0], [-1.0, 2.0], [1.0, 0.0], [1.0, -2.0]]])
    lost = torch.tensor([[[-1.0, 1.0], [1.0, -1.0], [50.0, 50.0]]])
    monkeypatch.setattr(module, "_start", lambda *_: (lost, torch.ones(1, 3, dtype=torch.bool)))
    centres, exists = kmeans(points, everything(points), 3, seeded(0))
    torch.testing.assert_close(centres, lost)
    assert exists.all()


@few
@given(seed=seeds, entries=st.integers(1, 4), together=st.integers(1, 5))
def test_entries_clustered_in_several_goes_are_the_same(seed: int, entries: int, together: int) -> None:
    generator = seeded(seed)
    filled = torch.randint(0, 7, (entries,), generator=generator)
    points, valid = torch.randn(entries, 6, 3, generator=generator), torch.arange(6) < filled[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "VALUES", together * 18)
        found, again = kmeans(points, valid, 3, seeded(seed)), seeded(seed)
        parts = [
            kmeans(points[i : i + together], valid[i : i + together], 3, again) for i in range(0, entries, together)
        ]
    assert torch.equal(found[0], torch.cat([centres for centres, _ in parts]))
    assert torch.equal(found[1], torch.cat([exists for _, exists in parts]))


@few
@given(seed=seeds)
def test_centres_are_the_means_of_their_points(seed: int) -> None:
    points = torch.randn(2, 15, 3, generator=seeded(seed))
    centres, _ = kmeans(points, everything(points), 4, seeded(seed), iterations=100)
    for own, found in zip(points, centres, strict=True):
        owner = [min(range(4), key=lambda c: (point - found[c]).norm().item()) for point in own]
        for c in range(4):
            mine = [point for point, o in zip(own, owner, strict=True) if o == c]
            torch.testing.assert_close(found[c], torch.stack(mine).mean(0), atol=1e-5, rtol=1e-4)


def test_by_hand() -> None:
    points = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [9.0, 4.0]]])
    centres, exists = kmeans(points, everything(points), 2, seeded(0))
    assert sorted(centres[0].tolist()) == [[0.0, 0.5], [9.0, 2.0]]
    assert exists.all()


@few
@given(seed=seeds, filled=st.lists(st.integers(0, 5), min_size=1, max_size=4), k=st.integers(1, 6))
def test_as_many_centres_as_distinct_points_at_most_k(seed: int, filled: list[int], k: int) -> None:
    points = torch.randn(len(filled), 5, 4, generator=seeded(seed))
    valid = torch.arange(5) < torch.tensor(filled)[:, None]
    centres, exists = kmeans(points, valid, k, seeded(seed))
    assert exists.sum(1).tolist() == [min(count, k) for count in filled]
    assert torch.equal(centres[~exists], torch.zeros_like(centres[~exists]))
    for own, found, there, count in zip(points, centres, exists, filled, strict=True):
        if count <= k:  # every point is its own centre
            expected = sorted(own[:count].tolist())
            torch.testing.assert_close(torch.tensor(sorted(found[there].tolist())), torch.tensor(expected))


def test_identical_points_have_one_centre() -> None:
    points = torch.tensor([0.6, 0.8]).expand(2, 7, 2).clone()
    points[1, :3] = torch.tensor([0.8, -0.6])
    centres, exists = kmeans(points, everything(points), 3, seeded(0))
    assert exists.tolist() == [[True, False, False], [True, True, False]]
    torch.testing.assert_close(centres[0, 0], torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(torch.tensor(sorted(centres[1, :2].tolist())), torch.tensor([[0.6, 0.8], [0.8, -0.6]]))


def test_without_points_there_are_no_centres() -> None:
    points = torch.randn(2, 4, 3)
    centres, exists = kmeans(points, torch.zeros(2, 4, dtype=torch.bool), 2, seeded(0))
    assert not exists.any() and not centres.any()


@few
@given(seed=seeds, filled=st.lists(st.integers(0, 6), min_size=2, max_size=2))
def test_slots_never_written_are_never_used(seed: int, filled: list[int]) -> None:
    bank = Bank(2, 6, 4)
    labels = torch.tensor([entry for entry, count in enumerate(filled) for _ in range(count)], dtype=torch.long)
    bank.write(torch.randn(len(labels), 4, generator=seeded(seed)), labels)
    plain = kmeans(bank.slots, bank.written, 3, seeded(seed))
    noise = torch.where(bank.written[..., None], bank.slots, torch.full_like(bank.slots, 100.0))
    noisy = kmeans(noise, bank.written, 3, seeded(seed))
    assert torch.equal(plain[0], noisy[0]) and torch.equal(plain[1], noisy[1])
    # Means of unit vectors: a zero slot would make a centre of length 0, or pull one there.
    for entry, count in enumerate(filled):
        if count <= 3:
            lengths = plain[0][entry, plain[1][entry]].norm(dim=1)
            torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_deterministic_for_a_generator() -> None:
    points = cloud(1, 3)
    one, two = (kmeans(points, everything(points), 7, seeded(5)) for _ in range(2))
    other, _ = kmeans(points, everything(points), 7, seeded(6))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other)


def test_entries_are_clustered_apart() -> None:
    """Moving one entry's points moves its centres alone."""
    points = blobs(2, 2)
    moved = points.clone()
    moved[1] += 100
    one, _ = kmeans(points, everything(points), 10, seeded(0))
    two, _ = kmeans(moved, everything(points), 10, seeded(0))
    torch.testing.assert_close(two[0], one[0])
    assert (two[1] > 50).all()


def test_double_precision_stays_double() -> None:
    centres, _ = kmeans(cloud(0, 1).double(), everything(cloud(0, 1)), 2, seeded(0))
    assert centres.dtype == torch.float64
