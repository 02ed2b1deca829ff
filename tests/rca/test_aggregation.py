import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from tagseg.rca.aggregation import aggregate, attend, likely_entries, posterior

few = settings(max_examples=20)
seeds = st.integers(0, 9999)


def random_case(
    seed: int, b: int = 2, e: int = 3, k: int = 2, d: int = 4, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    exists = torch.rand(e, k, generator=generator) < 0.6
    prototypes = torch.randn(e, k, d, generator=generator, dtype=dtype) * exists[..., None]
    return torch.randn(b, d, 2, 3, generator=generator, dtype=dtype), prototypes, exists


def slow_attention(cell: list[float], prototypes: Tensor, exists: Tensor, t: float) -> list[list[float]]:
    """Eq. 6 for one cell: softmax of the cosines over all prototypes that exist."""

    def cosine(other: list[float]) -> float:
        product = sum(x * y for x, y in zip(cell, other, strict=True))
        return product / math.sqrt(sum(x * x for x in cell)) / math.sqrt(sum(x * x for x in other))

    e, k, _ = prototypes.shape
    powers = [
        [math.exp(cosine(prototypes[i, j].tolist()) / t) if exists[i, j] else 0.0 for j in range(k)] for i in range(e)
    ]
    total = sum(sum(row) for row in powers)
    return [[power / total if total else 0.0 for power in row] for row in powers]


@few
@given(seed=seeds, b=st.integers(1, 3), e=st.integers(1, 4), k=st.integers(1, 3), t=st.sampled_from([0.1, 0.5, 1.0]))
def test_attention_and_context_equal_the_loops(seed: int, b: int, e: int, k: int, t: float) -> None:
    features, prototypes, exists = random_case(seed, b, e, k)
    attention = attend(features, prototypes, exists, t)
    context = aggregate(attention, prototypes)
    assert attention.shape == (b, e, k, 2, 3) and context.shape == features.shape
    for image in range(b):
        for y in range(2):
            for x in range(3):
                slow = slow_attention(features[image, :, y, x].tolist(), prototypes, exists, t)
                torch.testing.assert_close(attention[image, :, :, y, x], torch.tensor(slow), atol=1e-5, rtol=1e-4)
                gathered = sum((slow[i][j] * prototypes[i, j] for i in range(e) for j in range(k)), torch.zeros(4))
                torch.testing.assert_close(context[image, :, y, x], gathered, atol=1e-5, rtol=1e-4)


def test_by_hand() -> None:
    features = torch.tensor([5.0, 0.0]).view(1, 2, 1, 1)
    prototypes = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]]])
    attention = attend(features, prototypes, torch.ones(2, 1, dtype=torch.bool), 0.5)
    share = math.exp(2) / (math.exp(2) + 1)  # cosines 1 and 0, divided by 0.5
    assert attention.flatten().tolist() == pytest.approx([share, 1 - share])
    assert aggregate(attention, prototypes).flatten().tolist() == pytest.approx([2 * share, 3 * (1 - share)])


@few
@given(seed=seeds)
def test_attention_sums_to_one_over_what_exists(seed: int) -> None:
    features, prototypes, exists = random_case(seed)
    attention = attend(features, prototypes, exists, 0.1)
    total = attention.sum((1, 2))
    torch.testing.assert_close(total, torch.full_like(total, float(exists.any())))
    assert not attention[:, ~exists].any()


@few
@given(seed=seeds)
def test_prototypes_that_do_not_exist_change_nothing(seed: int) -> None:
    features, prototypes, exists = random_case(seed)
    noise = torch.where(exists[..., None], prototypes, torch.randn_like(prototypes) * 50)
    plain, noisy = attend(features, prototypes, exists, 0.1), attend(features, noise, exists, 0.1)
    assert torch.equal(plain, noisy)
    torch.testing.assert_close(aggregate(noisy, noise), aggregate(plain, prototypes))


def test_without_prototypes_attention_and_context_are_zero_and_gradients_finite() -> None:
    features = torch.randn(2, 4, 2, 2, requires_grad=True)
    prototypes = torch.zeros(3, 2, 4)
    attention = attend(features, prototypes, torch.zeros(3, 2, dtype=torch.bool), 0.1)
    context = aggregate(attention, prototypes)
    (attention.sum() + context.sum()).backward()
    assert not attention.any() and not context.any()
    assert features.grad is not None and torch.equal(features.grad, torch.zeros_like(features))


def test_a_single_prototype_gets_all_attention() -> None:
    features, prototypes, exists = torch.randn(1, 4, 2, 2), torch.randn(2, 2, 4), torch.zeros(2, 2, dtype=torch.bool)
    exists[1, 0] = True
    attention = attend(features, prototypes, exists, 0.1)
    assert torch.equal(attention[:, 1, 0], torch.ones(1, 2, 2))
    context = aggregate(attention, prototypes)
    torch.testing.assert_close(context, prototypes[1, 0].view(1, 4, 1, 1).expand(1, 4, 2, 2))


@few
@given(seed=seeds)
def test_attention_follows_permutations_of_images_and_classes(seed: int) -> None:
    features, prototypes, exists = random_case(seed, b=3)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    plain = attend(features, prototypes, exists, 0.1)
    torch.testing.assert_close(attend(features[order], prototypes, exists, 0.1), plain[order])
    classes = attend(features, prototypes[order], exists[order], 0.1)
    torch.testing.assert_close(classes, plain[:, order])
    context = aggregate(plain, prototypes)
    torch.testing.assert_close(aggregate(classes, prototypes[order]), context, atol=1e-5, rtol=1e-4)


@few
@given(seed=seeds)
def test_flipped_features_give_flipped_attention(seed: int) -> None:
    features, prototypes, exists = random_case(seed)
    plain = attend(features, prototypes, exists, 0.1)
    torch.testing.assert_close(attend(features.flip(-1), prototypes, exists, 0.1), plain.flip(-1))


@pytest.mark.parametrize("seed", range(3))
def test_gradient(seed: int) -> None:
    features, prototypes, exists = random_case(seed, b=1, dtype=torch.float64)
    exists[0, 0] = True
    prototypes = torch.where(exists[..., None], torch.randn_like(prototypes), 0).requires_grad_(True)
    features.requires_grad_(True)

    def context(f: Tensor, q: Tensor) -> Tensor:
        # Zero prototypes have no direction, so only those that exist are varied.
        q = torch.where(exists[..., None], q, 1.0)
        return aggregate(attend(f, q, exists, 0.5), q)

    assert torch.autograd.gradcheck(context, (features, prototypes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_single(dtype: torch.dtype) -> None:
    features, prototypes, exists = random_case(0)
    half = features.to(dtype)
    attention = attend(half, prototypes, exists, 0.1)
    assert attention.dtype == torch.float32
    assert torch.equal(attention, attend(half.float(), prototypes, exists, 0.1))


PAIRS = [(0, 1), (1, 2), (0, 3)]
"""Tags 1 and 3 of the first image, tag 2 of the second, out of order."""


def posteriors(features: Tensor, prototypes: Tensor, exists: Tensor) -> Tensor:
    image, tag = torch.tensor(PAIRS).T
    return posterior(features, prototypes, exists, 0.3, image, tag)


@few
@given(seed=seeds)
def test_posterior_is_the_share_of_attention_among_the_tags_and_background(seed: int) -> None:
    features, prototypes, exists = random_case(seed, b=2, e=4)
    exists[0, 0] = True
    attention = attend(features, prototypes, exists, 0.3)
    found = posteriors(features, prototypes, exists)
    for n, (b, e) in enumerate(PAIRS):
        tags = [tag for image, tag in PAIRS if image == b]
        for h in range(features.shape[2]):
            for w in range(features.shape[3]):
                total = sum(float(attention[b, other, :, h, w].sum()) for other in (0, *tags))
                share = float(attention[b, e, :, h, w].sum()) / total
                assert float(found[n, h, w]) == pytest.approx(share, rel=1e-4, abs=1e-6)


def test_posterior_where_prototypes_are_missing() -> None:
    features, prototypes, exists = random_case(0, b=2, e=4)
    exists.fill_(False)
    assert posteriors(features, prototypes, exists).eq(0).all()
    exists[1:] = True
    alone, second, first = posteriors(features, prototypes, exists)[[1, 2, 0]]
    assert alone.eq(1).all(), "the only tag, and no background"
    torch.testing.assert_close(first + second, torch.ones_like(first))
    exists[0], exists[3] = True, False
    first, _, missing = posteriors(features, prototypes, exists)
    assert missing.eq(0).all() and first.min() > 0 and first.max() < 1


def test_posterior_at_a_very_low_temperature_is_the_nearest_entry() -> None:
    features, prototypes, exists = random_case(0, b=2, e=4)
    exists.fill_(True)
    cosine = torch.einsum("bdhw,ekd->bekhw", F.normalize(features, dim=1), F.normalize(prototypes, dim=2)).amax(2)
    found = posterior(features, prototypes, exists, 1e-4, torch.tensor([1]), torch.tensor([2]))
    assert torch.equal(found[0] > 0.5, cosine[1, 2] > cosine[1, 0]) and found.isfinite().all()


@few
@given(seed=seeds, b=st.integers(1, 3), c=st.integers(1, 5), limit=st.integers(0, 6))
def test_likely_entries_are_background_and_the_classes_with_the_highest_scores(
    seed: int, b: int, c: int, limit: int
) -> None:
    scores = torch.randn(b, c, generator=torch.Generator().manual_seed(seed))
    found = likely_entries(scores, limit)
    for row, own in zip(scores.tolist(), found.tolist(), strict=True):
        best = sorted(range(c), key=lambda i: -row[i])[: limit or c]
        assert own == [0, *sorted(i + 1 for i in best)]


@few
@given(seed=seeds)
def test_every_image_may_have_its_own_prototypes(seed: int) -> None:
    features, prototypes, exists = random_case(seed, b=3, e=5)
    entries = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)).argsort()[:, :2]
    own, there = prototypes[entries], exists[entries]
    attention = attend(features, own, there, 0.1)
    context = aggregate(attention, own)
    for i in range(3):
        alone = attend(features[i : i + 1], own[i], there[i], 0.1)
        torch.testing.assert_close(attention[i : i + 1], alone)
        torch.testing.assert_close(context[i : i + 1], aggregate(alone, own[i]))
