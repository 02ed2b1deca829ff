import dataclasses
import math
from pathlib import Path

import pytest
import torch

from tagseg.data.records import Sample
from tagseg.report.atlas_data import CropPicture, crop_budget, show_entry, show_pair
from tagseg.report.bank_view import EntryPair, Memory, NearestRegions


def memory_of(entries, prototypes):
    exists = torch.ones(entries, prototypes, dtype=torch.bool)
    share = torch.full((entries, prototypes), 1 / prototypes)
    return Memory(10, torch.full((entries,), 10), torch.ones(entries, prototypes, 2), exists, share)


@pytest.mark.parametrize(
    ("entries", "prototypes", "expected"),
    [(7, 10, (10, 6)), (21, 10, (10, 4)), (81, 10, (3, 3)), (255, 10, (1, 3)), (2, 1, (1, 6))],
)
def test_the_page_stays_small_with_many_classes(entries, prototypes, expected):
    assert crop_budget(memory_of(entries, prototypes)) == expected
    assert math.prod((entries, *expected)) <= 900


@pytest.fixture
def nearest_regions():
    """Return three regions of class 1, nearest to prototypes 2, 2 and 0; the second is even nearer to background."""
    return NearestRegions(
        tuple(Sample(str(i), Path(), (1,)) for i in range(3)),
        tuple(torch.ones(1, 1, dtype=torch.bool) for _ in range(3)),
        torch.tensor([1, 1, 1]),
        torch.tensor([[0.1, 0.2, 0.8], [0.3, 0.2, 0.9], [0.7, 0.1, 0.0]]),
        torch.tensor([1, 0, 1]),
    )


def test_prototypes_are_in_order_of_their_share_and_those_without_regions_are_counted(nearest_regions):
    memory = dataclasses.replace(memory_of(2, 3), share=torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]))
    entry = show_entry(memory, nearest_regions, 1, draw)
    assert [(p.share, p.regions) for p in entry.prototypes] == [(0.5, 2), (pytest.approx(0.2), 1)]
    assert [crop.name for crop in entry.prototypes[0].crops] == ["1/2", "0/2"], "the nearest first"
    assert (entry.count, entry.unmatched, entry.left_out, entry.regions) == (3, 1, 0, 3)
    assert entry.own == pytest.approx(2 / 3) and entry.others == ((0, pytest.approx(1 / 3)),)
    background = show_entry(memory, nearest_regions, 0, draw)
    assert (background.prototypes, background.unmatched, background.regions) == ((), 3, 0)


def test_a_pair_shows_the_regions_nearest_to_its_two_prototypes(nearest_regions):
    confusion = show_pair(EntryPair((0, 1), (2, 0), 0.75), nearest_regions, draw)
    assert confusion.sides[0] == () and [crop.name for crop in confusion.sides[1]] == ["2/0", "1/0", "0/0"]
    assert (confusion.entries, confusion.similarity) == ((0, 1), 0.75)


def draw(index, prototype):
    return CropPicture("", 4, 3, 1, f"{index}/{prototype}", (1,), 0.5, None)
