import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tagseg.rca.regions import Gate, Regions, mine_regions, pool_regions

few = settings(max_examples=20)


def slow_cells(maps: Tensor, image: int, tag: int, rule: str, threshold: float) -> list[list[bool]]:
    """A class region's cells, cell by cell."""
    _, classes, h, w = maps.shape
    scores = maps[image].tolist()
    if rule == "peak":
        peak = max(max(row) for row in scores[tag])
        return [[peak > 0 and scores[tag][y][x] / peak > threshold for x in range(w)] for y in range(h)]
    soft = [
        [math.exp(scores[tag][y][x]) / sum(math.exp(scores[c][y][x]) for c in range(classes)) for x in range(w)]
        for y in range(h)
    ]
    mean = sum(sum(row) for row in soft) / (h * w)
    return [[value > mean for value in row] for row in soft]


def slow_background(maps: Tensor, image: int, tags: list[int], threshold: float) -> list[list[bool]]:
    _, _, h, w = maps.shape
    scores = maps[image].tolist()
    peaks = {tag: max(max(row) for row in scores[tag]) for tag in tags}
    return [
        [all(peaks[tag] <= 0 or max(scores[tag][y][x], 0) / peaks[tag] < threshold for tag in tags) for x in range(w)]
        for y in range(h)
    ]


def slow_regions(maps: Tensor, tags: Tensor, rule: str) -> dict[tuple[int, int], tuple[list[list[bool]], bool]]:
    """All regions as (image, label) -> (cells, confident)."""
    regions = {}
    for image in range(len(maps)):
        present = [tag for tag in range(maps.shape[1]) if tags[image, tag]]
        sure = {tag: 1 / (1 + math.exp(-maps[image, tag].mean().item())) > 0.7 for tag in present}
        for tag in present:
            regions[image, tag + 1] = (slow_cells(maps, image, tag, rule, 0.3), sure[tag])
        confident = bool(present) and all(sure.values())
        regions[image, 0] = (slow_background(maps, image, present, 0.1), confident)
    return {key: (cells, sure) for key, (cells, sure) in regions.items() if any(map(any, cells))}


def as_dict(regions: Regions) -> dict[tuple[int, int], tuple[list[list[bool]], bool]]:
    keys = list(zip(regions.image.tolist(), regions.label.tolist(), strict=True))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, zip(regions.cells.tolist(), regions.confident.tolist(), strict=True), strict=True))


def random_batch(seed: int, b: int, c: int, h: int = 3, w: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tags = torch.rand(b, c, generator=generator) < 0.6
    return torch.randn(b, c, h, w, generator=generator) * 2 + 0.5, tags


@pytest.mark.parametrize("rule", ["peak", "softmax-mean"])
@few
@given(seed=st.integers(0, 9999), b=st.integers(1, 4), c=st.integers(1, 4))
def test_regions_equal_the_loops(rule: str, seed: int, b: int, c: int) -> None:
    maps, tags = random_batch(seed, b, c)
    assert as_dict(mine_regions(maps, tags, rule)) == slow_regions(maps, tags, rule)


@few
@given(seed=st.integers(0, 9999), b=st.integers(1, 5))
def test_permuted_batch_gives_the_same_regions(seed: int, b: int) -> None:
    maps, tags = random_batch(seed, b, 3)
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    permuted = as_dict(mine_regions(maps[order], tags[order]))
    moved = {(int(order[image]), label): found for (image, label), found in permuted.items()}
    assert moved == as_dict(mine_regions(maps, tags))


@few
@given(seed=st.integers(0, 9999))
def test_flipped_maps_give_flipped_regions(seed: int) -> None:
    maps, tags = random_batch(seed, 2, 3)
    plain, flipped = mine_regions(maps, tags), mine_regions(maps.flip(-1), tags)
    assert torch.equal(flipped.cells, plain.cells.flip(-1))


def test_peak_rule_by_hand() -> None:
    maps = torch.tensor([[[[4.0, 2.0, 1.0, -8.0]]]])
    regions = mine_regions(maps, torch.tensor([[True]]), threshold=0.3, background_threshold=0.1)
    assert regions.label.tolist() == [1, 0]
    assert regions.cells.tolist() == [[[True, True, False, False]], [[False, False, False, True]]]
    assert regions.confident.tolist() == [False, False]  # the mean is -0.25: probability 0.44


def test_softmax_mean_rule_by_hand() -> None:
    # Softmax of the first class: 1/2 and 3/4, mean 5/8.
    maps = torch.tensor([[[[0.0, math.log(3)]], [[0.0, 0.0]]]])
    regions = mine_regions(maps, torch.tensor([[True, False]]), "softmax-mean", background=False)
    assert regions.cells.tolist() == [[[False, True]]]


def test_softmax_mean_with_a_single_class_finds_nothing() -> None:
    """The softmax over one class is 1 everywhere, never above its mean."""
    regions = mine_regions(
        torch.randn(2, 1, 3, 3), torch.ones(2, 1, dtype=torch.bool), "softmax-mean", background=False
    )
    assert len(regions.label) == 0


def test_background_is_where_every_tagged_map_is_low() -> None:
    maps = torch.tensor([[[[10.0, 0.5, 0.5, 2.0]], [[0.1, 8.0, 0.1, 0.1]], [[9.0, 9.0, 9.0, 9.0]]]])
    regions = mine_regions(maps, torch.tensor([[True, True, False]]), background_threshold=0.1)
    assert regions.label.tolist() == [1, 2, 0]
    # The first map is high in cells 0 and 3, the second in cell 1, the third is not tagged.
    assert regions.cells[2].tolist() == [[False, False, True, False]]


def test_confidence_is_the_tag_probability_and_background_needs_all_tags() -> None:
    sure, unsure = math.log(0.75 / 0.25), math.log(0.65 / 0.35)
    maps = torch.zeros(2, 2, 1, 2)
    maps[:, :, 0, 0] = torch.tensor([[sure, sure], [sure, unsure]]) * 2  # the mean over two cells is the half
    regions = mine_regions(maps, torch.ones(2, 2, dtype=torch.bool), confidence=0.7)
    found = dict(
        zip(zip(regions.image.tolist(), regions.label.tolist(), strict=True), regions.confident.tolist(), strict=True)
    )
    assert found == {(0, 1): True, (0, 2): True, (0, 0): True, (1, 1): True, (1, 2): False, (1, 0): False}


def test_map_without_a_positive_cell_has_no_region() -> None:
    regions = mine_regions(-torch.rand(1, 1, 2, 2), torch.tensor([[True]]))
    assert regions.label.tolist() == [0]
    assert regions.cells.all() and not regions.confident.any()


def test_image_without_tags_gives_unsure_background_only() -> None:
    regions = mine_regions(torch.ones(1, 2, 2, 2) * 9, torch.zeros(1, 2, dtype=torch.bool))
    assert (regions.label.tolist(), regions.confident.tolist()) == ([0], [False])


def test_no_gradient_goes_through_the_regions() -> None:
    features = torch.rand(1, 2, 2, 2, requires_grad=True)
    regions = mine_regions(features, torch.ones(1, 2, dtype=torch.bool))
    assert not regions.cells.requires_grad
    pool_regions(features, regions)[0].sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad != 0, regions.cells[0].expand(1, 2, 2, 2))


def test_pooling_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0, 6.0]], [[0.0, 4.0, 8.0]]]])
    cells = torch.tensor([[[True, False, True]], [[False, True, False]]])
    regions = Regions(torch.tensor([0, 0]), torch.tensor([1, 2]), cells, torch.ones(2, dtype=torch.bool))
    assert pool_regions(features, regions).tolist() == [[3.5, 4.0], [2.0, 4.0]]


@few
@given(seed=st.integers(0, 9999), b=st.integers(1, 4), c=st.integers(1, 4))
def test_pooling_equals_the_loops_for_any_number_of_tags(seed: int, b: int, c: int) -> None:
    """Above all: a second class of an image is pooled in its own region, not inside the first one's."""
    maps, tags = random_batch(seed, b, c)
    regions = mine_regions(maps, tags)
    features = torch.randn(b, 5, *maps.shape[2:])
    pooled = pool_regions(features, regions)
    assert pooled.shape == (len(regions.label), 5)
    for image, cells, mean in zip(regions.image.tolist(), regions.cells, pooled, strict=True):
        inside = [features[image, :, y, x] for y in range(3) for x in range(4) if cells[y, x]]
        torch.testing.assert_close(mean, sum(inside, torch.zeros(5)) / len(inside))


def test_pooling_gradient() -> None:
    maps, tags = random_batch(3, 2, 2)
    regions = mine_regions(maps, tags)
    features = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: pool_regions(f, regions), (features,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_pooled_in_single(dtype: torch.dtype) -> None:
    cells = torch.ones(1, 64, 64, dtype=torch.bool)
    regions = Regions(torch.tensor([0]), torch.tensor([1]), cells, torch.tensor([True]))
    features = torch.rand(1, 3, 64, 64).to(dtype)
    pooled = pool_regions(features, regions)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, features.float().mean((2, 3)))


@pytest.mark.parametrize("rule", ["peak", "softmax-mean"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_mined_in_single(rule: str, dtype: torch.dtype) -> None:
    maps, tags = random_batch(5, 3, 3)
    half = maps.to(dtype)
    assert as_dict(mine_regions(half, tags, rule)) == as_dict(mine_regions(half.float(), tags, rule))


@few
@given(seed=st.integers(0, 9999), b=st.integers(1, 4), c=st.integers(1, 4))
def test_posterior_rule_equals_the_loops(seed: int, b: int, c: int) -> None:
    maps, tags = random_batch(seed, b, c)
    pairs = tags.nonzero().tolist()
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(len(pairs), 3, 4, generator=generator) / c
    if pairs:
        shares[seed % len(pairs)] *= seed % 3 and 1  # sometimes a class without prototypes
    peak = as_dict(mine_regions(maps, tags))
    found = as_dict(mine_regions(maps, tags, "posterior", shares=shares))
    for image in range(b):
        own = [n for n, (i, _) in enumerate(pairs) if i == image]
        known = all(shares[n].any() for n in own)
        for n in own:
            key = image, pairs[n][1] + 1
            cells = (shares[n] > 0.5).tolist()
            if not known:
                assert found.get(key) == peak.get(key)
            else:
                assert (found[key][0] if key in found else None) == (cells if any(map(any, cells)) else None)
        rest = sum((shares[n] for n in own), torch.zeros(3, 4)) < 0.5
        if known and rest.any():
            assert found[image, 0][0] == rest.tolist()


def test_posterior_rule_without_background_prototypes_is_the_peak_rule() -> None:
    """The tags then share everything, so that nothing would be left to background."""
    maps, tags = random_batch(1, 2, 2)
    tags = torch.ones_like(tags)
    first = torch.rand(2, 3, 4)
    shares = torch.stack([first, 1 - first], 1).flatten(0, 1)
    assert as_dict(mine_regions(maps, tags, "posterior", shares=shares)) == as_dict(mine_regions(maps, tags))


def test_the_gate_lets_in_the_better_half_of_a_class_that_the_network_seldom_sees() -> None:
    rng = torch.Generator().manual_seed(0)
    relative, absolute = Gate(3, 0.7, relative=True), Gate(3, 0.7, relative=False)
    low, high = 0.3 * torch.rand(400, generator=rng), 0.8 + 0.2 * torch.rand(400, generator=rng)
    tags = torch.tensor([[True, True, False]])
    for first, second in zip(low, high, strict=True):
        for gate in (relative, absolute):
            gate.watch(torch.stack([first, second, torch.tensor(0.01)])[None], tags)
    assert torch.equal(absolute.bars(), torch.full((3,), 0.7))
    bars = relative.bars()
    # The median of the first class; the second passes the bar with all regions; nobody has the third tag.
    assert bars[0].item() == pytest.approx(low.median().item(), abs=0.05) and bars[1:].tolist() == pytest.approx(
        [0.7] * 2
    )
    maps = torch.zeros(2, 3, 4, 4)
    maps[0, 0], maps[1, 0] = torch.tensor([0.25, 0.05]).logit()
    both = torch.tensor([[True, False, False]] * 2)
    assert mine_regions(maps, both, background=False, threshold=-1.0, confidence=bars).confident.tolist() == [
        True,
        False,
    ]
    assert not mine_regions(maps, both, background=False, threshold=-1.0, confidence=absolute.bars()).confident.any()
