from pathlib import Path

from tagseg.data.records import Dataset, Sample
from tagseg.evaluate.quality import ClassQuality, ImageQuality
from tagseg.evaluate.ranking import classes_text, suspects_to_csv, to_csv, worst_first
from tagseg.evaluate.suspects import Suspect

FINE = ClassQuality(0.9, 0.9, 0.9, 0.1, 0.2)
DATA = Dataset(Path(), "folder", ("cat", "big, [dog]"), (Sample("i0", Path("0.png"), (1,)),))


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
    ranked = worst_first(DATA, found)
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
    assert [one.id for one in worst_first(DATA, found, settled={"d", "e"}, count=2)] == ["b", "f"]
    large = found | {"h": judged("h", 0.5, c1=ClassQuality(0.2, 0.9, 0.9, 0.1, 1.0))}
    large |= {name: judged(name, 1.0, c1=ClassQuality(0.9, 0.9, 0.9, 0.0, 0.1)) for name in "ijklmn"}
    assert next(one.reason for one in worst_first(DATA, large) if one.id == "h") == (
        "cat is much larger than in other images"
    )


def test_a_table_of_masks_holds_any_name() -> None:
    ranked = worst_first(DATA, {'a,"b"': judged('a,"b"', 0.25, c2=FINE)})
    assert to_csv(ranked) == 'image,score,classes,reason\n"a,""b""",0.250,"big, [dog] 0.90",\n'


def test_a_table_of_suspects_holds_any_name() -> None:
    suspect = Suspect("ü 1", 2, "wrong", 0.1, 0.2, 0.9)
    assert suspects_to_csv([suspect], DATA) == 'image,tag,suspect,doubt\nü 1,"big, [dog]",wrong,0.900\n'
