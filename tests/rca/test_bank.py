from collections.abc import Iterable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from tagseg.rca.bank import Bank
from tagseg.training.checkpoint import load_tensors, restore, save_tensors

few = settings(max_examples=20)


class SlowEntry:
    """One entry of the bank: a Python list of unit vectors."""

    def __init__(self, capacity: int, update: str, momentum: float) -> None:
        self.slots: list[Tensor | None] = [None] * capacity
        self.cursor, self.update, self.momentum = 0, update, momentum

    def write(self, embedding: Tensor) -> None:
        unit, old = embedding / embedding.norm(), self.slots[self.cursor]
        if self.update == "blend" and old is not None:
            unit = self.momentum * old + (1 - self.momentum) * unit
            unit = unit / unit.norm()
        self.slots[self.cursor] = unit
        self.cursor = (self.cursor + 1) % len(self.slots)


def assert_holds(bank: Bank, entries: list[SlowEntry]) -> None:
    for index, entry in enumerate(entries):
        held = [slot for slot in entry.slots if slot is not None]
        assert int(bank.filled[index]) == len(held)
        assert bank.written[index].tolist() == [slot is not None for slot in entry.slots]
        expected = torch.stack([torch.zeros(bank.slots.shape[2]) if slot is None else slot for slot in entry.slots])
        torch.testing.assert_close(bank.slots[index], expected)


def batches(seed: int, sizes: list[int], entries: int, d: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, d, generator=generator) * 5, torch.randint(0, entries, (n,), generator=generator))
        for n in sizes
    ]


def assert_equals_the_loop(bank: Bank, slow: list[SlowEntry], written: Iterable[tuple[Tensor, Tensor]]) -> None:
    for embeddings, labels in written:
        bank.write(embeddings, labels)
        for embedding, label in zip(embeddings, labels.tolist(), strict=True):
            slow[label].write(embedding)
        assert_holds(bank, slow)


@few
@given(
    seed=st.integers(0, 9999),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    entries=st.integers(1, 4),
    slots=st.integers(1, 5),
)
def test_first_in_first_out_equals_the_loop(seed: int, sizes: list[int], entries: int, slots: int) -> None:
    """Also with a full entry, wrap-around inside a batch, the same class twice and more regions than slots."""
    bank = Bank(entries, slots, 4)
    slow = [SlowEntry(slots, "fifo", 0) for _ in range(entries)]
    assert_equals_the_loop(bank, slow, batches(seed, sizes, entries))


@few
@given(seed=st.integers(0, 9999), sizes=st.lists(st.integers(0, 4), min_size=1, max_size=6), entries=st.integers(1, 3))
def test_blending_equals_the_loop(seed: int, sizes: list[int], entries: int) -> None:
    bank = Bank(entries, 4, 4, "blend", 0.9)
    slow = [SlowEntry(4, "blend", 0.9) for _ in range(entries)]
    assert_equals_the_loop(bank, slow, batches(seed, sizes, entries))


@few
@given(seed=st.integers(0, 9999), n=st.integers(0, 8))
def test_permuted_batch_fills_free_slots_with_the_same_embeddings(seed: int, n: int) -> None:
    [(embeddings, labels)] = batches(seed, [n], 3)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    one, two = Bank(3, 8, 4), Bank(3, 8, 4)
    one.write(embeddings, labels)
    two.write(embeddings[order], labels[order])
    assert torch.equal(one.filled, two.filled)
    for entry in range(3):
        held = [sorted(bank.slots[entry, : bank.filled[entry]].tolist()) for bank in (one, two)]
        assert held[0] == held[1]


def test_first_in_first_out_by_hand() -> None:
    bank = Bank(2, 2, 2)
    bank.write(torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]), torch.tensor([1, 1, 1]))
    assert bank.slots[1].tolist() == [[-1, 0], [0, 1]]
    assert (bank.filled.tolist(), bank.cursor.tolist()) == ([0, 2], [0, 1])
    bank.write(torch.tensor([[0.0, -4.0]]), torch.tensor([1]))
    assert bank.slots[1].tolist() == [[-1, 0], [0, -1]]
    assert bank.slots[0].abs().sum() == 0 and not bank.written[0].any()


def test_blending_by_hand() -> None:
    bank = Bank(1, 1, 2, "blend", 0.75)
    bank.write(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    assert bank.slots[0].tolist() == [[1, 0]]  # a free slot is written whole
    bank.write(torch.tensor([[0.0, 9.0]]), torch.tensor([0]))
    torch.testing.assert_close(bank.slots[0, 0], torch.tensor([0.75, 0.25]) / (0.75**2 + 0.25**2) ** 0.5)


def test_blending_a_batch_larger_than_the_entry_takes_only_its_last_embeddings() -> None:
    bank = Bank(1, 2, 2, "blend", 0.5)
    bank.write(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([0, 0, 0]))
    assert bank.slots[0].tolist() == [[-1, 0], [0, 1]]
    assert bank.cursor.tolist() == [1]


def test_exactly_full() -> None:
    bank = Bank(1, 3, 3)
    bank.write(torch.eye(3), torch.zeros(3, dtype=torch.long))
    assert torch.equal(bank.slots[0], torch.eye(3))
    assert (bank.filled.tolist(), bank.cursor.tolist()) == ([3], [0])


def test_embeddings_without_a_direction_are_left_out() -> None:
    bank = Bank(2, 3, 2)
    bad = torch.tensor([[0.0, 0.0], [1.0, 0.0], [torch.nan, 1.0], [torch.inf, 0.0]])
    bank.write(bad, torch.tensor([1, 1, 1, 0]))
    assert bank.filled.tolist() == [0, 1]
    assert bank.slots[1].tolist() == [[1, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_become_unit_vectors_in_single(dtype: torch.dtype) -> None:
    embeddings = torch.randn(3, 8).to(dtype)
    bank = Bank(1, 4, 8)
    bank.write(embeddings, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(bank.slots[0, :3], F.normalize(embeddings.float(), dim=1))
    torch.testing.assert_close(bank.slots[0, :3].norm(dim=1), torch.ones(3))


def test_no_gradient_enters_the_bank() -> None:
    embeddings = torch.randn(2, 3, requires_grad=True)
    bank = Bank(1, 4, 3)
    bank.write(embeddings, torch.zeros(2, dtype=torch.long))
    assert not bank.slots.requires_grad


@pytest.mark.parametrize("update", ["fifo", "blend"])
def test_saved_and_restored_exactly(update: str, tmp_path: Path) -> None:
    bank, other = Bank(3, 4, 5, update, 0.9), Bank(3, 4, 5, update, 0.9)
    for embeddings, labels in batches(0, [7, 6], 2, 5):  # the last entry stays empty
        bank.write(embeddings, labels)
    save_tensors(tmp_path / "bank.safetensors", bank.state_dict(), {})
    restore(other, load_tensors(tmp_path / "bank.safetensors")[0], tmp_path / "bank.safetensors")
    [(embeddings, labels)] = batches(1, [5], 3, 5)
    for _ in range(2):  # restored, and after going on
        for name, value in bank.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
        bank.write(embeddings, labels)
        other.write(embeddings, labels)
