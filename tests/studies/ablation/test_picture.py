from pathlib import Path
from xml.etree import ElementTree

import pytest

from tagseg.studies.ablation.arms import Arm
from tagseg.studies.ablation.picture import draw_ablation
from tagseg.studies.ablation.scores import ArmScore
from tagseg.studies.ablation.table import Ablation

HOSTILE = "<script>alert(1)</script>\x07 & more"
SVG = "{http://www.w3.org/2000/svg}"


def ablation(values: dict[Arm, list[float]], names: tuple[str, ...] = ("background", "cat")) -> Ablation:
    """Return an ablation in which every class has the arm's mIoU, one value per seed."""
    scores = tuple(
        ArmScore(arm, seed, "rule", value, (value,) * len(names), (value,) * 9)
        for arm, of_seed in values.items()
        for seed, value in enumerate(of_seed)
    )
    return Ablation(Path("x"), names, 12, scores, () if "both" in values else ("both_0",), {})


def parsed(found: Ablation) -> ElementTree.Element:
    return ElementTree.fromstring(draw_ablation(found))


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


def test_bars_and_dots_are_at_their_gains() -> None:
    root = parsed(ablation({"cam": [0.4, 0.5], "contrast": [0.38, 0.5], "both": [0.44, 0.56]}))
    gains, changes = (
        [bar for bar in root.iter(f"{SVG}rect") if bar.get("height") == height] for height in ("18.0", "8.0")
    )
    assert [bar.get("class") for bar in gains] == ["fill contrast", "fill both"] and len(changes) == 4
    # contrast: -2 and 0, both: 4 and 6. A point of mIoU has the same length everywhere.
    down, up = (float(bar.get("width", "")) for bar in gains)
    assert up == pytest.approx(5 * down, abs=1)
    zero = float(gains[1].get("x", ""))
    assert float(gains[0].get("x", "")) + down == pytest.approx(zero, abs=0.2)
    dots = [float(dot.get("cx", "")) for dot in root.iter(f"{SVG}circle")][:4]
    assert [(dot - zero) / (up / 5) for dot in dots] == pytest.approx([-2, 0, 4, 6], abs=0.05)
    assert {"-1.0 ± 1.4", "+5.0 ± 1.4", "background", "cat"} <= set(texts(root))


def test_later_bars_are_lower_and_inside_the_picture() -> None:
    root = parsed(ablation({"cam": [0.4], "both": [0.5]}, tuple(f"class {i}" for i in range(80))))
    tops = [float(bar.get("y", "")) for bar in root.iter(f"{SVG}rect") if bar.get("class")]
    assert tops == sorted(tops) and len(set(tops)) == 81
    height = float(root.get("height", ""))
    assert max(float(text.get("y", "")) for text in root.iter(f"{SVG}text")) < height
    names = {text.text: float(text.get("y", "")) for text in root.iter(f"{SVG}text")}
    # A class's name is level with its bar.
    assert names["class 79"] == pytest.approx(tops[-1] + 8, abs=6)


def test_names_are_only_text() -> None:
    found = ablation({"cam": [0.4], "both": [0.5]}, ("background", HOSTILE))
    root = parsed(found)
    assert not [element for element in root.iter() if element.tag == f"{SVG}script"]
    assert "<script>alert(1)<…" in texts(root)
    drawn = draw_ablation(found)
    assert "<script" not in drawn and "\x07" not in drawn
    # Self-contained: the only address in it is SVG's namespace.
    assert drawn.replace("http://www.w3.org/2000/svg", "").count("http") == 0


def test_without_a_pair_the_picture_says_what_is_missing() -> None:
    root = parsed(ablation({"cam": [0.4]}))
    assert not list(root.iter(f"{SVG}circle"))
    assert any("Partial: 1 of 2 runs are finished. A gain requires cam and another arm" in text for text in texts(root))
    assert any("not for claims" in text for text in texts(root))
    empty = parsed(ablation({}))
    assert any("Partial: 0 of 1 runs are finished" in text for text in texts(empty))


def test_arms_without_a_gain_are_drawn() -> None:
    root = parsed(ablation({"cam": [0.0], "both": [0.0]}))
    assert {"+0.0 ± -"} <= set(texts(root)) and "Partial" not in " ".join(texts(root))
