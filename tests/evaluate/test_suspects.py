from pathlib import Path

import pytest

from tagseg.data.records import Dataset, Sample
from tagseg.evaluate.quality import ImageQuality
from tagseg.evaluate.suspects import Suspect, find_suspects


def dataset(*tags: tuple[int, ...]) -> Dataset:
    samples = tuple(Sample(f"i{number}", Path(f"{number}.png"), own) for number, own in enumerate(tags))
    return Dataset(Path(), "folder", ("cat", "big, [dog]"), samples)


def seen(*present: dict[int, float]) -> dict[str, ImageQuality]:
    return {f"i{number}": ImageQuality(f"i{number}", 1.0, {}, values) for number, values in enumerate(present)}


def test_suspects_by_hand() -> None:
    # Cat: 0.9, 0.8 and 0.1 in images tagged cat (mean 0.6), 0.7 and 0.1 in the others (mean 0.4).
    data = dataset((1,), (1,), (1,), (2,), (2,))
    found = seen({1: 0.9}, {1: 0.8}, {1: 0.1}, {1: 0.7, 2: 0.9}, {1: 0.1, 2: 0.9})
    wrong, missing = find_suspects(data, found)
    assert wrong == Suspect("i2", 1, "wrong", 0.1, wrong.usual, 0.9) and wrong.usual == pytest.approx(0.4)
    assert missing == Suspect("i3", 1, "missing", 0.7, missing.usual, 0.7) and missing.usual == pytest.approx(0.6)


def test_correct_tags_are_not_suspects() -> None:
    data = dataset((1,), (2,), (1, 2))
    assert find_suspects(data, seen({1: 0.9, 2: 0.1}, {1: 0.1, 2: 0.9}, {1: 0.8, 2: 0.8})) == []


def test_classes_that_all_images_or_none_are_tagged_with() -> None:
    assert find_suspects(dataset((1,), (1,)), seen({1: 0.0, 2: 0.9}, {1: 0.9, 2: 0.8})) == []


def test_images_that_were_not_judged_are_left_out() -> None:
    assert find_suspects(dataset((1,), (1,), (2,)), seen({1: 0.9})) == []
