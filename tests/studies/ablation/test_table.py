import json
from pathlib import Path

import pytest

from tagseg.studies.ablation.arms import ARMS, Arm
from tagseg.studies.ablation.scores import BACKGROUND_CUTS, ArmScore
from tagseg.studies.ablation.table import Ablation, Spread

RULES: dict[Arm, str] = {"cam": "coarse map, Otsu's cut", "both": "posterior map, cut at 0.5"}


def score(arm: Arm, seed: int, *iou: float | None, cut: float = 0.5) -> ArmScore:
    """Return a score whose mIoU is the mean of the given classes, as in a real run."""
    present = [value for value in iou if value is not None]
    rule = RULES.get(arm, RULES["cam"])
    return ArmScore(arm, seed, rule, sum(present) / len(present), iou, tuple(cut + tenth / 100 for tenth in range(9)))


def ablation(*scores: ArmScore, missing: tuple[str, ...] = (), folder: Path = Path("x")) -> Ablation:
    return Ablation(folder, ("background", "cat", "a|b"), 370, scores, missing, {"precision": "fp32"})


PAIRED = ablation(
    score("cam", 0, 0.60, 0.30, 0.30, cut=0.2),  # mean 0.40
    score("cam", 1, 0.70, 0.40, 0.40, cut=0.3),  # 0.50
    score("both", 0, 0.60, 0.45, 0.30),  # 0.45
    score("both", 1, 0.76, 0.40, 0.43),  # 0.53
)


def test_mean_and_sample_deviation_by_hand() -> None:
    spread = Spread({0: 40.0, 1: 42.0, 5: 47.0})
    # Differences from the mean 43: 3, 1, 4; (9 + 1 + 16) / (3 - 1) = 13.
    assert spread.mean == pytest.approx(43) and spread.std == pytest.approx(13**0.5)
    assert spread.text() == "43.0 ± 3.6" and spread.text("+") == "+43.0 ± 3.6"
    assert spread.to_dict() == {"mean": 43.0, "std": 3.61, "seeds": [0, 1, 5], "values": [40.0, 42.0, 47.0]}


def test_one_seed_has_no_deviation_and_no_seed_no_mean() -> None:
    assert Spread({3: 41.25}).text() == "41.2 ± -" and Spread({3: 41.25}).std is None
    assert Spread({3: 41.256}).to_dict() == {"mean": 41.26, "std": None, "seeds": [3], "values": [41.26]}
    assert Spread({}).text("+") == "-" and Spread({}).to_dict() == {
        "mean": None,
        "std": None,
        "seeds": [],
        "values": [],
    }
    assert Spread({0: -0.04}).text("+") == "+0.0 ± -"


def test_gains_are_paired_by_seed() -> None:
    gain = PAIRED.gain("both")
    assert gain.values == pytest.approx({0: 5.0, 1: 3.0})
    # The deviation of the differences (2 ** 0.5), not of the arms' own scores (7.1 and 5.7).
    assert gain.mean == pytest.approx(4) and gain.std == pytest.approx(2**0.5)
    assert PAIRED.miou("both").std == pytest.approx(8 / 2**0.5)
    assert PAIRED.gain("cam").values == pytest.approx({0: 0.0, 1: 0.0})


def test_only_seeds_that_both_arms_have_count_for_the_gain() -> None:
    found = ablation(score("cam", 0, 0.4, 0.2), score("both", 0, 0.6, 0.4), score("both", 7, 1.0, 1.0))
    assert found.gain("both").values == pytest.approx({0: 20.0})
    assert found.miou("both").mean == pytest.approx(75)
    assert ablation(score("both", 0, 0.6)).gain("both").values == {}


def test_the_change_of_a_class_leaves_out_seeds_without_it() -> None:
    assert PAIRED.gain("both", 1).values == pytest.approx({0: 15.0, 1: 0.0})
    found = ablation(
        score("cam", 0, 0.5, None, 0.2), score("cam", 1, 0.5, 0.3, 0.2),
        score("both", 0, 0.5, 0.9, 0.2), score("both", 1, 0.5, 0.4, None),
    )  # fmt: skip
    assert found.iou("cam", 1).values == pytest.approx({1: 30.0})
    assert found.gain("both", 1).values == pytest.approx({1: 10.0})
    assert found.gain("both", 2).values == pytest.approx({0: 0.0})


def test_sensitivity_is_the_mean_over_seeds_at_each_cut() -> None:
    assert PAIRED.sensitivity("cam") == pytest.approx([25 + tenth for tenth in range(9)])
    assert list(BACKGROUND_CUTS) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_the_table_by_hand() -> None:
    lines = PAIRED.table().splitlines()
    assert "Pseudo-masks of 370 training images" in lines[0] and "Partial" not in PAIRED.table()
    assert lines[2:6] == [
        "| arm | mIoU | gain over cam | seeds | map and its cut |",
        "|---|---:|---:|---|---|",
        "| cam | 45.0 ± 7.1 |  | 0, 1 | coarse map, Otsu's cut |",
        "| both | 49.0 ± 5.7 | +4.0 ± 1.4 | 0, 1 | posterior map, cut at 0.5 |",
    ]
    assert lines[9:15] == [
        "| class | cam | both |",
        "|---|---:|---:|",
        "| background | 65.0 ± 7.1 | +3.0 ± 4.2 |",
        "| cat | 35.0 ± 7.1 | +7.5 ± 10.6 |",
        "| a\\|b | 35.0 ± 7.1 | +1.5 ± 2.1 |",
        "",
    ]
    assert lines[15] == "## Sensitivity, chosen with truth: not for claims"
    assert lines[-2:] == [
        "| cam | 25.0 | 26.0 | 27.0 | 28.0 | 29.0 | 30.0 | 31.0 | 32.0 | 33.0 |",
        "| both | 50.0 | 51.0 | 52.0 | 53.0 | 54.0 | 55.0 | 56.0 | 57.0 | 58.0 |",
    ]


def test_a_partial_table_names_the_missing_runs() -> None:
    found = ablation(score("cam", 0, 0.5, 0.5, 0.5), missing=("both_0", "both_1"))
    assert found.table().startswith("**Partial table:** 1 run is finished, missing: both_0, both_1.\n\nPseudo-masks")
    assert "| cam | 50.0 ± - |  | 0 |" in found.table()
    assert ablation(missing=("cam_0",)).table() == "**Partial table:** 0 runs are finished, missing: cam_0.\n"


def test_scores_as_json_in_per_cent_with_two_decimals(tmp_path: Path) -> None:
    found = ablation(*PAIRED.scores, missing=("both_2",), folder=tmp_path)
    assert found.save() == tmp_path / "ablation.md"
    values = json.loads((tmp_path / "ablation.json").read_text())
    assert (values["partial"], values["missing"], values["images"]) == (True, ["both_2"], 370)
    assert values["classes"] == ["background", "cat", "a|b"] and values["settings"] == {"precision": "fp32"}
    assert list(values["arms"]) == ["cam", "both"]
    both = values["arms"]["both"]
    assert {key: both[key] for key in ("mean", "std", "seeds", "values", "rule")} == {
        "mean": 49.0, "std": 5.66, "seeds": [0, 1], "values": [45.0, 53.0], "rule": RULES["both"],
    }  # fmt: skip
    assert both["gain"] == {"mean": 4.0, "std": 1.41, "seeds": [0, 1], "values": [5.0, 3.0]}
    assert both["per_class"]["a|b"]["iou"]["mean"] == 36.5 and both["per_class"]["a|b"]["gain"]["mean"] == 1.5
    assert both["cuts_chosen_with_truth_not_for_claims"]["0.9"] == 58.0
    assert (tmp_path / "ablation.md").read_text() == "# Ablation\n\n" + found.table()


def test_arms_keep_their_order() -> None:
    assert ARMS == ("cam", "contrast", "aggregation", "both")
    assert ablation(score("both", 0, 0.5), score("contrast", 2, 0.5), score("cam", 1, 0.5)).arms == (
        "cam", "contrast", "both",
    )  # fmt: skip
