import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.data.prepare import Prepared
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.errors import DataError, RunError
from tagseg.evaluate.evaluate import evaluate, evenly_spaced, examples, score_pseudo_masks
from tagseg.evaluate.gain import Calibration, Candidate, Gain
from tagseg.evaluate.scores import Evaluation, Scores, read_evaluation
from tagseg.masks.mask_files import mask_file, write_mask
from tagseg.networks.segmenters import empty_segmenter
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.run.stages import OUTPUTS
from tagseg.settings.report import ReportSettings
from tagseg.settings.settings import Settings
from tagseg.training.checkpoint import save_tensors

H, W = 24, 32


def painted(*ids: int) -> np.ndarray:
    """Return a mask of vertical stripes of equal width."""
    return np.repeat(np.array([ids], np.uint8), W // len(ids), axis=1).repeat(H, axis=0)


def sample(root: Path, name: str, split: str = "train", truth: np.ndarray | None = None, scored: bool = True) -> Sample:
    Image.new("RGB", (W, H), "green").save(root / f"{name}.png")
    if truth is not None:
        write_mask(root / "masks" / f"{name}.png", truth)
    mask = None if truth is None else root / "masks" / f"{name}.png"
    return Sample(name, root / f"{name}.png", (1,), split, mask, scored=scored)  # type: ignore[arg-type]


def prepared(root: Path, *samples: Sample) -> Prepared:
    dataset = Dataset(root, "folder", ("cat", "a|b"), samples)
    return Prepared(dataset, {sample.id: (H, W) for sample in samples})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run with an untrained segmentation network."""
    (tmp_path / "data").mkdir()
    run = open_run(tmp_path / "run", tmp_path / "data", Settings(device="cpu", report=ReportSettings(examples=2)))
    about = {"classes": ["background", "cat", "a|b"], "encoder": "test_resnet", "stride": 16}
    about |= {"predict_scales": [1.0], "predict_flip": False, "max_side": 64}
    with run.stage("segment"):
        save_tensors(run.segmenter / "network.safetensors", empty_segmenter("test_resnet", 3, 16).state_dict(), about)
    return run


def pseudo(run: Run, name: str, decided: np.ndarray, unsure: np.ndarray | None = None) -> None:
    write_mask(mask_file(run.decided_masks, name), decided)
    write_mask(mask_file(run.masks, name), decided if unsure is None else unsure)


def test_scores_by_hand(run: Run, tmp_path: Path) -> None:
    data = prepared(
        tmp_path,
        sample(tmp_path, "t1", truth=painted(0, 1)),
        sample(tmp_path, "t2", truth=painted(0, VOID, 1, 1)),
        sample(tmp_path, "v1", "val", truth=painted(0, 2)),
        sample(tmp_path, "v2", "val"),
    )
    pseudo(run, "t1", painted(0, 1), painted(0, VOID))
    pseudo(run, "t2", painted(0, 1, 0, 1))
    write_mask(mask_file(run.predictions, "v1"), painted(0, 0, 0, 2))
    result = evaluate(data, run)
    # Quarters of an image. Training: background 2 + 1 right, 1 too many; cat 2 + 1 right, 1 missed; the rest is void.
    assert result.pseudo_masks == Scores((3 / 4 + 3 / 4) / 2, (3 / 4, 3 / 4, None), 2, "train", 0.25)
    assert result.segmenter == Scores((2 / 3 + 1 / 2) / 2, (2 / 3, None, 1 / 2), 1, "val", None)
    assert result.classes == ("background", "cat", "a|b")


def test_scores_are_written_as_json_and_as_a_table(run: Run, tmp_path: Path) -> None:
    data = prepared(
        tmp_path, sample(tmp_path, "t", truth=painted(0, 2)), sample(tmp_path, "v", "val", truth=painted(0, 2))
    )
    pseudo(run, "t", painted(0, 2))
    write_mask(mask_file(run.predictions, "v"), painted(0, 0, 0, 2))
    with run.stage("evaluate"):
        result = evaluate(data, run)
    assert read_evaluation(run) == result
    assert json.loads(run.evaluation_file.read_text())["pseudo_masks"]["iou"] == [1.0, None, 1.0]
    table = (run.root / "evaluation.md").read_text(encoding="utf-8")
    assert table == result.table()
    assert table.splitlines() == [
        "| class | pseudo-masks (1 train images) | segmenter (1 val images) |",
        "|---|---:|---:|",
        "| **mean IoU** | **100.0** | **58.3** |",
        "| background | 100.0 | 66.7 |",
        "| cat | - | - |",
        "| a\\|b | 100.0 | 50.0 |",
    ]
    assert {path for output in OUTPUTS["evaluate"] for path in [output] if (run.root / path).exists()} == set(
        OUTPUTS["evaluate"]
    )


def test_masks_that_do_not_count_are_not_scored(run: Run, tmp_path: Path) -> None:
    data = prepared(
        tmp_path,
        sample(tmp_path, "in", truth=painted(0, 1)),
        sample(tmp_path, "out", truth=painted(1, 0), scored=False),
        sample(tmp_path, "v", "val", truth=painted(0, 1), scored=False),
    )
    for name in ("in", "out"):
        pseudo(run, name, painted(0, 1))
    result = evaluate(data, run)
    assert result.pseudo_masks is not None and result.pseudo_masks.miou == 1.0 and result.pseudo_masks.images == 1
    assert result.segmenter is None and "segmenter" not in result.table()


def test_images_of_a_calibration_are_not_scored_and_counted(run: Run, tmp_path: Path) -> None:
    names = ("a", "b", "seen", "seen too")
    truths = {name: painted(0, 1) if name in ("a", "b") else painted(1, 0) for name in names}
    data = prepared(
        tmp_path,
        *(sample(tmp_path, name, truth=truth) for name, truth in truths.items()),
        sample(tmp_path, "unofficial", truth=painted(0, 1), scored=False),
    )
    for name in names:
        pseudo(run, name, painted(0, 1))
    gain = Gain(0.5, 0.5, 0.0, 0.0, 0.0)
    for seen in (("seen", "unofficial"), ("seen too",)):  # the images of both calibrations count
        with run.changing() as (_, draft):
            Calibration(seen, (Candidate("now", "", 0.5, 1),), 0, gain, run.settings()).save(draft)
    with run.stage("evaluate"):
        result = evaluate(data, run)
    assert result.pseudo_masks is not None and (result.pseudo_masks.miou, result.pseudo_masks.images) == (1.0, 2)
    assert result.calibrated == 2 and read_evaluation(run) == result
    said = "Not scored: 2 training images whose true masks `tagseg calibrate` has seen."
    assert result.table().splitlines()[-2:] == ["", said]
    # Settings chosen with them may still apply when the network is trained again.
    run.discard("train")
    with run.changing() as (_, draft):
        Calibration(("a", "b"), (Candidate("now", "", 0.5, 1),), 0, gain, run.settings()).save(draft)
    assert score_pseudo_masks(data, run) is None
    assert Evaluation(result.classes, None, None, 4).table() == said.replace("2", "4") + "\n"


def test_without_true_masks_there_are_predictions_but_no_scores(run: Run, tmp_path: Path) -> None:
    data = prepared(tmp_path, *(sample(tmp_path, f"t{i}") for i in range(3)), sample(tmp_path, "v", "val"))
    result = evaluate(data, run)
    assert result.pseudo_masks is None and result.segmenter is None
    assert result.table() == "No true masks in the data set: nothing to score.\n"
    # Two examples for the report, at the size of the images, and the list of classes.
    assert sorted(path.name for path in run.predictions.iterdir()) == ["classes.json", "t0.png", "t2.png"]
    with Image.open(run.predictions / "t0.png") as picture:
        assert picture.mode == "P" and picture.size == (W, H)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (painted(0, 1)[:-1], r"t\.png: the mask has 32 x 23 pixels, expected 32 x 24 as in its image"),
        (painted(0, 9), r"t\.png: unknown ids 9 in the mask, expected 0, 255 or 1 \(cat\), 2 \(a\|b\)"),
    ],
)
def test_wrong_truth_is_named(split: str, truth: np.ndarray, message: str, run: Run, tmp_path: Path) -> None:
    data = prepared(tmp_path, sample(tmp_path, "t", split, truth=truth))
    pseudo(run, "t", painted(0, 1))
    with pytest.raises(DataError, match=message):
        evaluate(data, run)
    assert not run.evaluation_file.exists()


def test_reading_the_scores_of_a_run_without_scores(run: Run) -> None:
    with pytest.raises(RunError, match="stage evaluate has not finished"):
        read_evaluation(run)


def test_evaluation_needs_a_segmenter(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    run = open_run(tmp_path / "run", tmp_path / "data", Settings())
    with pytest.raises(RunError, match="stage segment has not finished; run `tagseg segment"):
        evaluate(prepared(tmp_path), run)


@pytest.mark.parametrize(
    ("length", "count", "chosen"),
    [
        (5, 9, [0, 1, 2, 3, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (9, 3, [0, 4, 8]),
        (10, 4, [0, 3, 6, 9]),
        (3, 1, [0]),
        (3, 0, []),
    ],
)
def test_items_are_spaced_evenly(length: int, count: int, chosen: list[int]) -> None:
    assert evenly_spaced(range(length), count) == chosen


def test_examples_have_a_scored_mask_if_any_image_does() -> None:
    with_mask = [Sample(f"m{i}", Path("x"), (1,), mask=Path("m")) for i in range(3)]
    without = [Sample(f"n{i}", Path("x"), (1,)) for i in range(3)]
    unofficial = Sample("u", Path("x"), (1,), mask=Path("m"), scored=False)
    assert [s.id for s in examples((*without, unofficial, *with_mask), 2)] == ["m0", "m2"]
    assert [s.id for s in examples((*without, unofficial), 9)] == ["n0", "n1", "n2", "u"]
    assert examples((), 3) == []


def test_a_table_of_one_column() -> None:
    table = Evaluation(("background", "cat"), None, Scores(0.5, (1.0, 0.0), 7, "val")).table()
    assert table.splitlines()[0] == "| class | segmenter (7 val images) |" and "| cat | 0.0 |" in table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["background"]}, "2 IoUs of 1 classes"),
        ({"segmenter": {"miou": 0.5}}, "segmenter.iou is missing"),
        (
            {"segmenter": {"miou": "high", "iou": [], "images": 1, "split": "val"}},
            "segmenter.miou: expected a number, found text",
        ),
        ({"calibrated": None}, "calibrated: expected a whole number, found null"),
        ([], "expected an object, found a list"),
    ],
)
def test_a_damaged_evaluation_is_named(change: Any, message: str, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", tmp_path, Settings())
    scores = {"miou": 0.5, "iou": [0.5, None], "images": 3, "split": "train", "of a later version": 1}
    with run.stage("evaluate"):
        run.evaluation_file.write_text(json.dumps({"classes": ["background", "cat"], "pseudo_masks": scores}))
    assert read_evaluation(run).pseudo_masks == Scores(0.5, (0.5, None), 3, "train")
    damaged = json.loads(run.evaluation_file.read_text()) | change if isinstance(change, dict) else change
    run.evaluation_file.write_text(json.dumps(damaged))
    with pytest.raises(RunError, match=rf"evaluation\.json: .*damaged \({message}"):
        read_evaluation(run)
