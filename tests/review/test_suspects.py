from pathlib import Path

import pytest

from tagseg.data.records import Dataset, Sample
from tagseg.review.ranking import classes_text, suspects_to_csv, to_csv, worst_first
from tagseg.review.scores import ClassQuality, ImageQuality
from tagseg.review.suspects import Suspect, find_suspects

FINE = ClassQuality(0.9, 0.9, 0.9, 0.1, 0.2)


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


def judged(name: str, score: float, **classes: ClassQuality) -> ImageQuality:
    return ImageQuality(name, score, {int(key[1:]): value for key, value in classes.items()}, {})


def test_the_worst_come_first_with_the_reason() -> None:
    other = ClassQuality(0.3, 0.9, 0.9, 0.1, 0.2)
    found = {
        "a": judged("a", 0.9, c1=FINE),
        "b": judged("b", 0.2, c1=FINE, c2=ClassQuality(0.0, 0.0, 0.0, 0.0, 0.0)),
        "c": judged("c", 0.4, c1=ClassQuality(0.4, 0.6, 0.3, 0.1, 0.2), c2=other),
        "d": judged("d", 0.1, c1=ClassQuality(0.2, 0.9, 0.9, 0.1, 0.02)),
        "e": judged("e", 0.3, c1=ClassQuality(0.2, 0.2, 0.9, 0.1, 0.2)),
        "f": judged("f", 0.3, c1=ClassQuality(0.2, 0.9, 0.9, 0.8, 0.2)),
        "g": judged("g", 0.3, c2=ClassQuality(0.2, 0.9, 0.9, 0.1, 1.0)),
    }
    ranked = worst_first(dataset((1,)), found)
    assert [one.id for one in ranked] == ["d", "b", "e", "f", "g", "c", "a"]
    assert {one.id: one.reason for one in ranked} == {
        "d": "cat is much smaller than in other images",
        "b": "no pixels of big, [dog]",
        "e": "maps and mask disagree about cat",
        "f": "most of cat is unsure",
        "g": "the network sees big, [dog] elsewhere or not at all",
        "c": "the network sees big, [dog] elsewhere or not at all; cat changes with scale or mirroring",
        "a": "",
    }
    assert list(ranked[1].classes.items()) == [("big, [dog]", 0.0), ("cat", 0.9)]
    assert classes_text(ranked[1].classes) == "big, [dog] 0.00, cat 0.90"
    assert [one.id for one in worst_first(dataset((1,)), found, settled={"d", "e"}, count=2)] == ["b", "f"]
    large = found | {"h": judged("h", 0.5, c1=ClassQuality(0.2, 0.9, 0.9, 0.1, 1.0))}
    large |= {name: judged(name, 1.0, c1=ClassQuality(0.9, 0.9, 0.9, 0.0, 0.1)) for name in "ijklmn"}
    assert next(one.reason for one in worst_first(dataset((1,)), large) if one.id == "h") == (
        "cat is much larger than in other images"
    )


def test_tables_hold_any_name() -> None:
    ranked = worst_first(dataset((1,)), {'a,"b"': judged('a,"b"', 0.25, c2=FINE)})
    assert to_csv(ranked) == 'image,score,classes,reason\n"a,""b""",0.250,"big, [dog] 0.90",\n'
    suspect = Suspect("ü 1", 2, "wrong", 0.1, 0.2, 0.9)
    assert suspects_to_csv([suspect], dataset((1,))) == 'image,tag,suspect,doubt\nü 1,"big, [dog]",wrong,0.900\n'
