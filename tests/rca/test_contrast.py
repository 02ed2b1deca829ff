import math
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tagseg.rca import contrast as module
from tagseg.rca.bank import Bank
from tagseg.rca.contrast import contrast, draw_partners, mixed_contrast

few = settings(max_examples=20)
seeds = st.integers(0, 9999)


@dataclass
class Case:
    regions: Tensor
    labels: Tensor
    images: Tensor
    slots: Tensor
    written: Tensor

    @property
    def bank(self) -> tuple[Tensor, Tensor]:
        return self.slots, self.written


def random_case(seed: int, n: int = 5, e: int = 3, s: int = 4, d: int = 6, dtype: torch.dtype = torch.float32) -> Case:
    """Regions, and a bank whose entries are filled to any degree, also not at all or exactly full."""
    generator = torch.Generator().manual_seed(seed)
    filled = torch.randint(0, s + 1, (e,), generator=generator)
    written = torch.arange(s) < filled[:, None]
    slots = F.normalize(torch.randn(e, s, d, generator=generator, dtype=dtype), dim=2) * written[..., None]
    return Case(
        torch.randn(n, d, generator=generator, dtype=dtype) * 3,
        torch.randint(0, e, (n,), generator=generator),
        torch.randint(0, 3, (n,), generator=generator),
        slots,
        written,
    )


def slow_loss(region: list[float], label: int, slots: list[list[list[float]]], written: Tensor, t: float) -> float:
    """Eq. 3 for one region, term by term in double precision."""

    def similarity(slot: list[float]) -> float:
        length = math.sqrt(sum(x * x for x in region)) * math.sqrt(sum(x * x for x in slot))
        return sum(x * y for x, y in zip(region, slot, strict=True)) / length

    terms: dict[bool, list[float]] = {True: [], False: []}
    for entry in range(len(slots)):
        for slot in range(len(slots[entry])):
            if written[entry, slot]:
                terms[entry == label].append(math.exp(similarity(slots[entry][slot]) / t))
    losses = [-math.log(positive / (positive + sum(terms[False]))) for positive in terms[True]]
    return sum(losses) / len(losses) if losses else 0.0


def slow_contrast(regions: Tensor, labels: Tensor, slots: Tensor, written: Tensor, t: float) -> Tensor:
    pairs = zip(regions.tolist(), labels.tolist(), strict=True)
    return torch.tensor([slow_loss(region, label, slots.tolist(), written, t) for region, label in pairs])


@few
@given(seed=seeds, n=st.integers(1, 6), e=st.integers(1, 4), s=st.integers(1, 5), t=st.sampled_from([0.07, 0.1, 1.0]))
def test_contrast_equals_the_loops(seed: int, n: int, e: int, s: int, t: float) -> None:
    case = random_case(seed, n, e, s)
    expected = slow_contrast(case.regions, case.labels, *case.bank, t)
    torch.testing.assert_close(contrast(case.regions, case.labels, *case.bank, t), expected, atol=1e-4, rtol=1e-4)


def test_contrast_by_hand() -> None:
    slots = torch.tensor([[[-1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    written = torch.tensor([[True, False], [True, True]])
    loss = contrast(torch.tensor([[5.0, 0.0]]), torch.tensor([1]), slots, written, 0.5)
    # Cosines: 1 and 0 with the positives, -1 with the only negative; divided by 0.5.
    expected = (math.log(1 + math.exp(-2 - 2)) + math.log(1 + math.exp(-2 - 0))) / 2
    assert loss.tolist() == pytest.approx([expected], abs=1e-6)


@few
@given(seed=seeds, n=st.integers(1, 6))
def test_contrast_follows_a_permutation_and_ignores_lengths(seed: int, n: int) -> None:
    case = random_case(seed, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    plain = contrast(case.regions, case.labels, *case.bank, 0.1)
    torch.testing.assert_close(contrast(case.regions[order], case.labels[order], *case.bank, 0.1), plain[order])
    torch.testing.assert_close(contrast(case.regions * 7, case.labels, *case.bank, 0.1), plain, atol=1e-4, rtol=1e-4)


@few
@given(seed=seeds)
def test_slots_never_written_are_never_used(seed: int) -> None:
    case = random_case(seed)
    noise = torch.where(case.written[..., None], case.slots, torch.randn_like(case.slots) * 100)
    plain = contrast(case.regions, case.labels, *case.bank, 0.1)
    assert torch.equal(contrast(case.regions, case.labels, noise, case.written, 0.1), plain)
    longer = torch.cat([case.slots, torch.zeros_like(case.slots)], 1)
    more = torch.cat([case.written, torch.zeros_like(case.written)], 1)
    torch.testing.assert_close(contrast(case.regions, case.labels, longer, more, 0.1), plain)


@pytest.mark.parametrize("entries", [[], [1], [0], [0, 2]], ids=["empty", "own only", "other only", "others only"])
def test_without_positives_or_negatives_the_loss_is_zero_with_finite_gradient(entries: list[int]) -> None:
    bank = Bank(3, 4, 6)
    bank.write(torch.randn(len(entries), 6), torch.tensor(entries, dtype=torch.long))
    regions = torch.randn(2, 6, requires_grad=True)
    losses = contrast(regions, torch.tensor([1, 1]), bank.slots, bank.written, 0.1)
    losses.sum().backward()
    assert losses.tolist() == [0, 0]
    assert regions.grad is not None and torch.equal(regions.grad, torch.zeros_like(regions))


def test_zero_feature_has_a_finite_loss_and_gradient() -> None:
    case = random_case(0)
    regions = torch.zeros(1, 6, requires_grad=True)
    loss = contrast(regions, torch.tensor([2]), case.slots, torch.ones_like(case.written), 0.07)
    loss.sum().backward()
    assert loss.isfinite().all() and regions.grad is not None and regions.grad.isfinite().all()


def test_contrast_of_no_regions_is_empty() -> None:
    case = random_case(0, n=0)
    assert contrast(case.regions, case.labels, *case.bank, 0.1).shape == (0,)


@pytest.mark.parametrize("seed", range(4))
def test_contrast_gradient(seed: int) -> None:
    case = random_case(seed, dtype=torch.float64)
    case.regions.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda f: contrast(f, case.labels, *case.bank, 0.1), (case.regions,))


def test_gradient_pulls_towards_the_class_and_away_from_the_others() -> None:
    slots, written = torch.eye(2)[:, None], torch.ones(2, 1, dtype=torch.bool)
    region = torch.tensor([[1.0, 1.0]], requires_grad=True)
    contrast(region, torch.tensor([0]), slots, written, 0.1).sum().backward()
    assert region.grad is not None
    assert region.grad[0, 0] < 0 < region.grad[0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_regions_are_contrasted_in_single(dtype: torch.dtype) -> None:
    case = random_case(1)
    half = case.regions.to(dtype)
    losses = contrast(half, case.labels, *case.bank, 0.1)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, contrast(half.float(), case.labels, *case.bank, 0.1))


@few
@given(images=st.lists(st.integers(0, 3), max_size=8), seed=seeds)
def test_partners_lie_in_another_image(images: list[int], seed: int) -> None:
    first, second = draw_partners(torch.tensor(images, dtype=torch.long), torch.Generator().manual_seed(seed))
    assert first.tolist() == (list(range(len(images))) if len(set(images)) > 1 else [])
    assert len(second) == len(first)
    assert all(images[i] != images[j] for i, j in zip(first.tolist(), second.tolist(), strict=True))


def test_every_region_of_another_image_is_drawn_equally_often() -> None:
    images = torch.tensor([0, 0, 1, 2, 2])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_partners(images, generator)[1] for _ in range(900)])
    counts = [torch.bincount(column, minlength=5).tolist() for column in drawn.T]
    for region, row in enumerate(counts):
        others = [count for j, count in enumerate(row) if images[j] != images[region]]
        assert sum(others) == 900
        assert min(others) > 0.8 * 900 / len(others)


@pytest.mark.parametrize(("alpha", "variance"), [(8.0, 1 / 68), (1.0, 1 / 12)])
def test_shares_follow_the_beta_distribution(alpha: float, variance: float) -> None:
    shares = module._beta(alpha, 20_000, torch.Generator().manual_seed(0))
    assert shares.min() >= 0 and shares.max() <= 1
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert shares.var().item() == pytest.approx(variance, rel=0.05)  # 1 / (4 (2 alpha + 1))


@few
@given(seed=seeds, n=st.integers(1, 6))
def test_mixed_contrast_equals_the_loops_with_the_drawn_shares(seed: int, n: int) -> None:
    case = random_case(seed, n)
    generator = torch.Generator().manual_seed(seed)
    first, second = draw_partners(case.images, generator)
    shares = module._beta(8.0, len(first), generator)
    expected = []
    for i, j, share in zip(first.tolist(), second.tolist(), shares.tolist(), strict=True):
        mixed = (share * case.regions[i].double() + (1 - share) * case.regions[j].double()).tolist()
        one = slow_loss(mixed, int(case.labels[i]), case.slots.tolist(), case.written, 0.1)
        two = slow_loss(mixed, int(case.labels[j]), case.slots.tolist(), case.written, 0.1)
        expected.append(share * one + (1 - share) * two)
    again = torch.Generator().manual_seed(seed)
    alone, losses = mixed_contrast(case.regions, case.labels, case.images, *case.bank, 0.1, 8.0, again)
    torch.testing.assert_close(losses, torch.tensor(expected), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(alone, contrast(case.regions, case.labels, *case.bank, 0.1))


def test_mixing_with_share_one_is_the_plain_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_beta", lambda alpha, n, generator: torch.ones(n))
    case = random_case(5)
    case.images = torch.arange(len(case.labels))
    _, mixed = mixed_contrast(case.regions, case.labels, case.images, *case.bank, 0.1, 8.0, torch.Generator())
    torch.testing.assert_close(mixed, contrast(case.regions, case.labels, *case.bank, 0.1))


def test_regions_of_one_image_are_not_mixed() -> None:
    case = random_case(0)
    alone, mixed = mixed_contrast(
        case.regions, case.labels, torch.zeros_like(case.images), *case.bank, 0.1, 8.0, torch.Generator()
    )
    assert alone.shape == case.labels.shape and mixed.shape == (0,)


def test_mixed_contrast_gradient() -> None:
    case = random_case(2, dtype=torch.float64)
    case.images = torch.tensor([0, 0, 1, 1, 2])
    case.regions.requires_grad_(True)

    def losses(regions: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.cat(mixed_contrast(regions, case.labels, case.images, *case.bank, 0.1, 8.0, generator))

    assert torch.autograd.gradcheck(losses, (case.regions,))


@few
@given(seed=seeds, n=st.integers(1, 6), e=st.integers(1, 6), chunk=st.integers(1, 5))
def test_slots_taken_a_chunk_at_a_time_give_the_same_loss_and_gradient(seed: int, n: int, e: int, chunk: int) -> None:
    case = random_case(seed, n, e, dtype=torch.float64)
    case.regions.requires_grad_(True)
    whole = contrast(case.regions, case.labels, *case.bank, 0.1)
    [gradient] = torch.autograd.grad(whole.sum(), case.regions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CPU_CHUNK", chunk)
        chunked = contrast(case.regions, case.labels, *case.bank, 0.1)
        [again] = torch.autograd.grad(chunked.sum(), case.regions)
    torch.testing.assert_close(chunked, slow_contrast(case.regions, case.labels, *case.bank, 0.1).double(),
                               atol=1e-4, rtol=1e-4)  # fmt: skip
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(again, gradient)


def test_gradient_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most entries are no region's own, so that their slots only enter through the sum that is taken in chunks."""
    monkeypatch.setattr(module, "CPU_CHUNK", 3)
    case = random_case(7, n=3, e=6, dtype=torch.float64)
    case.written[:] = True
    case.slots = F.normalize(torch.randn_like(case.slots), dim=2)
    case.labels = torch.tensor([4, 4, 1])
    case.regions.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda f: contrast(f, case.labels, *case.bank, 0.1), (case.regions,))


def test_products_far_above_what_a_number_holds_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The running sum keeps its own highest product: at a low temperature e^(1/t) alone would be infinite."""
    monkeypatch.setattr(module, "CPU_CHUNK", 2)
    slots = F.normalize(torch.randn(5, 4, 6), dim=2)
    regions, written = torch.randn(2, 6, requires_grad=True), torch.ones(5, 4, dtype=torch.bool)
    losses = contrast(regions, torch.tensor([3, 3]), slots, written, 0.001)
    losses.sum().backward()
    similarity = F.normalize(regions, dim=1) @ slots.flatten(0, 1).T / 0.001
    hardest = similarity.view(2, 5, 4)[:, [0, 1, 2, 4]].amax((1, 2))
    expected = (hardest[:, None] - similarity.view(2, 5, 4)[:, 3]).relu().mean(1)
    torch.testing.assert_close(losses, expected, atol=1.0, rtol=1e-2)
    assert regions.grad is not None and regions.grad.isfinite().all() and regions.grad.any()


class Largest(TorchDispatchMode):
    """The most numbers that any tensor has that is made meanwhile."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.numbers = max(self.numbers, tensor.numel())
        return made

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}


def test_a_large_bank_is_never_compared_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_CHUNK", 32)
    n, e, s, d = 6, 100, 20, 8
    bank = Bank(e, s, d)
    bank.write(torch.randn(e * s, d), torch.arange(e).repeat(s))
    regions, labels = torch.randn(n, d, requires_grad=True), torch.tensor([1, 1, 2, 3, 0, 0])
    written = bank.written
    with Largest(bank.slots, written) as largest:
        alone, mixed = mixed_contrast(
            regions, labels, torch.arange(n), bank.slots, written, 0.1, 8.0, torch.Generator()
        )
        (alone.sum() + mixed.sum()).backward()
    assert largest.numbers <= e * s  # which slots are compared: a number for each, and never one for each region
    torch.testing.assert_close(alone, slow_contrast(regions, labels, bank.slots, written, 0.1), atol=1e-4, rtol=1e-4)


def test_slots_beyond_the_limit_are_drawn_and_stand_for_all() -> None:
    case = random_case(3, n=4, e=40, s=10)
    case.written[:] = True
    case.slots = F.normalize(torch.randn_like(case.slots), dim=2)
    exact = contrast(case.regions, case.labels, *case.bank, 0.5)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([contrast(case.regions, case.labels, *case.bank, 0.5, 100, generator) for _ in range(300)])
    assert (drawn.std(0) > 0.01).all()
    torch.testing.assert_close(drawn.mean(0), exact, atol=0.02, rtol=0.01)
    assert torch.equal(contrast(case.regions, case.labels, *case.bank, 0.5, 400), exact)
    one, two = (
        contrast(case.regions, case.labels, *case.bank, 0.5, 100, torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(one, two)


def test_no_slot_is_drawn_that_was_never_written() -> None:
    bank = Bank(30, 10, 6)
    bank.write(torch.randn(90, 6), torch.arange(30).repeat(3))
    noise = torch.where(bank.written[..., None], bank.slots, torch.full_like(bank.slots, 100.0))
    regions, labels = torch.randn(3, 6), torch.tensor([1, 2, 2])
    plain, noisy = (
        contrast(regions, labels, slots, bank.written, 0.1, 20, torch.Generator().manual_seed(0))
        for slots in (bank.slots, noise)
    )
    assert torch.equal(plain, noisy)
