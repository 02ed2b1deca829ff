import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tagseg.data.prepare import prepare
from tagseg.data.records import VOID
from tagseg.errors import DataError, RunError
from tagseg.evaluate.quality import read_quality
from tagseg.masks.mask_files import write_mask
from tagseg.pipeline import fit_until, run_stage
from tagseg.review import judge as module
from tagseg.review.assess import assess
from tagseg.review.foreign import judge_masks
from tagseg.review.judge import Evidence, expected_iou, judge_evidence
from tagseg.run.decisions import Decision, record_decision
from tagseg.run.folder import Run
from tagseg.settings.settings import Settings

SHARES = st.floats(0, 1, width=32)


def slow_iou(probability: np.ndarray, mask: np.ndarray) -> float:
    """Return the sum of minima divided by the sum of maxima, one pixel at a time."""
    smaller = larger = 0.0
    for p, m in zip(probability.astype(float).ravel(), mask.ravel(), strict=True):
        sharp = p**2 / (p**2 + (1 - p) ** 2)
        smaller += min(sharp, float(m))
        larger += max(sharp, float(m))
    return smaller / larger if larger else 1.0


@given(arrays.arrays(np.float32, (2, 3, 4), elements=SHARES), arrays.arrays(bool, (2, 3, 4)))
def test_the_expected_iou_against_a_loop(probability: np.ndarray, mask: np.ndarray) -> None:
    found = expected_iou(probability, mask)
    assert found == pytest.approx(slow_iou(probability, mask), abs=1e-6) and 0 <= found <= 1
    assert found == pytest.approx(expected_iou(probability[..., ::-1], mask[..., ::-1]), abs=1e-6)


def test_the_expected_iou_by_hand() -> None:
    mask = np.array([[True, True, False, False]])
    assert expected_iou(mask.astype(np.float32), mask) == 1 and expected_iou((~mask).astype(np.float32), mask) == 0
    # 3/4 is sharpened to 9/10 and 1/4 to 1/10: minima 0.9 + 0.9, maxima 1 + 1 + 0.1.
    likely = np.array([[0.75, 0.75, 0.25, 0.0]], np.float32)
    assert expected_iou(likely, mask) == pytest.approx(1.8 / 2.1)
    nothing = np.zeros((1, 4), np.float32)
    assert expected_iou(nothing, np.zeros((1, 4), bool)) == 1 and expected_iou(nothing, mask) == 0


def views(*planes: np.ndarray) -> np.ndarray:
    return np.stack(planes).astype(np.float32)


def test_an_image_is_judged_by_the_views_given_its_tags() -> None:
    # Three ids, and two views that agree only on the left; class 2 is not tagged and is ignored.
    one = np.array([[[0.0, 0.2]], [[0.5, 0.6]], [[0.5, 0.2]]])
    two = np.array([[[0.0, 0.6]], [[0.5, 0.2]], [[0.5, 0.2]]])
    mask = np.array([[1, 1]], np.uint8)
    maps = np.array([[[0.1, 0.9]], [[0.9, 0.1]]], np.float32)
    evidence = Evidence("a", (1,), views(one, two), mask, np.array([[False, True]]), maps)
    found = judge_evidence(evidence, np.array([0.81, 0.36], np.float32))
    given_tags = np.array([[1.0, (0.75 + 0.25) / 2]])
    assert found.score == pytest.approx(slow_iou(given_tags, mask == 1)) == found.classes[1].score
    assert found.classes[1].maps == pytest.approx(slow_iou(maps[1], mask == 1))
    assert found.classes[1].stable == pytest.approx((1 + 0.25) / (1 + 0.75))
    assert (found.classes[1].unsure, found.classes[1].area) == (0.5, 1.0)
    shown = [np.quantile(views(one, two).mean(0)[i], 0.99) for i in (1, 2)]
    assert found.present == pytest.approx({1: np.sqrt(shown[0] * 0.81), 2: np.sqrt(shown[1] * 0.36)})


def test_classes_are_judged_together_and_separately() -> None:
    plane = np.array([[[0, 0, 1, 0]], [[1, 0, 0, 0]], [[0, 1, 0, 1]]])
    mask = np.array([[1, 2, 2, 1]], np.uint8)
    maps = plane.astype(np.float32)
    found = judge_evidence(Evidence("a", (1, 2), views(plane), mask, mask == 9, maps), np.ones(2, np.float32))
    assert found.classes[1].score == pytest.approx(1 / 2) and found.classes[2].score == pytest.approx(1 / 3)
    assert found.score == pytest.approx((1 + 1) / (2 + 3))
    assert found.classes[1].stable == 1 and found.classes[1].unsure == 0


def test_a_tag_without_pixels_and_an_image_without_tags() -> None:
    plane = np.array([[[1, 0]], [[0, 1]]])
    empty = np.zeros((1, 2), np.uint8)
    lost = judge_evidence(
        Evidence("a", (1,), views(plane), empty, empty > 0, plane.astype(np.float32)), np.ones(1, np.float32)
    )
    assert (lost.score, lost.classes[1].score, lost.classes[1].area, lost.classes[1].unsure) == (0, 0, 0, 0)
    bare = judge_evidence(
        Evidence("b", (), views(plane), empty, empty > 0, plane[:1].astype(np.float32)), np.full(1, 0.01, np.float32)
    )
    assert bare.score == 1 and bare.classes == {} and bare.present == pytest.approx({1: np.sqrt(0.99 * 0.01)}, rel=0.02)


@pytest.fixture(scope="module")
def trained(discs: Path, tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run with two rounds on photographs of discs."""
    segment = {"epochs": 1, "batch": 4, "crop": 32, "max_side": 64, "predict_scales": [1.0], "rounds": 2}
    segment |= {"decoder_channels": 8}
    settings = Settings.from_dict({**tiny.to_dict(), "segment": segment})
    root = tmp_path_factory.mktemp("quality") / "run"
    fit_until(discs, root, "segment", settings)
    return Run(root)


def test_every_training_image_is_judged_and_the_results_are_saved(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_quality(trained) == {}
    found = assess(trained)
    assert list(found) == [str(i) for i in range(9)] and all(0 <= one.score <= 1 for one in found.values())
    assert set(found["2"].classes) == {1, 2} and set(found["0"].classes) == {2}
    assert read_quality(trained) == found, (
        "as they were saved, so that a list is the same whether they were computed or read"
    )
    assert trained.final().root == trained.round(1).root
    # A killed process left three images and half a line.
    lines = trained.quality_file.read_text().splitlines(keepends=True)
    trained.quality_file.write_text("".join(lines[:4]) + lines[4][:30])
    judged: list[str] = []
    gather_evidence = module.gather_evidence

    def recorded(*arguments: object) -> Evidence:
        judged.append(arguments[3].id)  # type: ignore[attr-defined]
        return gather_evidence(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "gather_evidence", recorded)
    again = assess(trained)
    assert judged == ["3", "4", "5", "6", "7", "8"] and again == found and list(again) == list(found)
    # One was killed when all were judged, before the manifest knew of them.
    trained.store(trained.manifest().without_others(["quality"]))
    assert assess(trained) == found and "quality.jsonl" in trained.manifest().others["quality"].files
    assert len(judged) == 6


def test_masks_of_another_tool_are_judged_as_the_runs_own(trained: Run, tmp_path: Path) -> None:
    own, folder = assess(trained), tmp_path / "theirs"
    shutil.copytree(trained.final().decided_masks, folder)
    judged = judge_masks(trained.root, folder)
    assert judged.missing == () and [one.score for one in judged.worst] == sorted(one.score for one in judged.worst)
    for name, quality in judged.found.items():
        assert quality.score == pytest.approx(own[name].score, abs=1e-4)
        assert quality.present.keys() == own[name].present.keys()
    # A mask turned upside down is worse, and half a mask is judged by that half.
    mask = np.asarray(Image.open(folder / "2.png"))
    half = mask.copy()
    half[: len(mask) // 2] = VOID
    write_mask(folder / "2.png", mask[::-1])
    write_mask(folder / "4.png", np.full_like(mask, VOID))
    write_mask(folder / "5.png", mask[:-1])
    (folder / "6.png").unlink()
    write_mask(folder / "0.png", np.ones_like(mask))  # class 1, and the image is tagged with 2
    changed = judge_masks(trained.root, folder)
    assert changed.missing == ("6",) and changed.found["2"].score < own["2"].score
    why = {one.id: one for one in changed.worst}
    assert why["4"].reason == "every pixel is void (255)" and why["4"].score == why["5"].score == 0
    assert "5.png" in why["5"].reason and changed.worst[0].id == "4"
    name = prepare(trained).dataset.classes[0]
    assert why["0"].reason.startswith(f"{name} is not a tag of the image") and why["0"].classes[name] == 0


def test_folders_without_masks_are_refused(trained: Run, tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "none", "no such folder"), (tmp_path, "has no mask of a training image")):
        with pytest.raises(DataError, match=message):
            judge_masks(trained.root, folder)


def test_the_command_lists_the_worst_of_them_with_reasons(
    trained: Run, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    status, text, _ = call(
        "judge", trained.root, "--labels", trained.final().decided_masks, "-n", 3, "--csv", tmp_path / "all.csv"
    )
    assert status == 0 and "3 of 9 masks, least trustworthy first" in text
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 10


def test_scores_of_another_network_are_ignored(trained: Run) -> None:
    assess(trained)
    header, *lines = trained.quality_file.read_text().splitlines(keepends=True)
    trained.quality_file.write_text(json.dumps(json.loads(header) | {"segmenter": "other"}) + "\n" + "".join(lines))
    assert read_quality(trained) == {}
    assert len(assess(trained)) == 9 and len(read_quality(trained)) == 9


def test_the_scores_are_deleted_with_the_network(trained: Run, discs: Path) -> None:
    assess(trained)
    record_decision(trained, "1", Decision("rejected"))
    fit_until(discs, trained.root, "masks")
    assert not trained.quality_file.exists(), "the segmentation network must be trained again"
    with pytest.raises(RunError, match="stage segment has not finished"):
        assess(trained)
    run_stage(trained.root, "segment")
    assert len(assess(trained)) == 9
