import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tagseg
from tagseg.data.images import read_mask_file
from tagseg.data.prepare import prepare
from tagseg.data.records import VOID
from tagseg.errors import DataError, RunError
from tagseg.evaluate.scores import read_evaluation
from tagseg.evaluate.verdict import class_verdicts
from tagseg.masks.map_files import map_file
from tagseg.pipeline import Fitted, fit, fit_until, run_stage
from tagseg.report.overview import draw_overview
from tagseg.run.decisions import Decision, record_decision
from tagseg.run.doctor import examine, result_checksums
from tagseg.run.folder import Run
from tagseg.run.stages import OUTPUTS, STAGES, Stage
from tagseg.settings.data import DataSettings
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.masks import MaskSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.report import ReportSettings
from tagseg.settings.segment import SegmentSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.training.checkpoint import load_tensors

SOURCE = Path(tagseg.__file__).parents[1]
SETTINGS = Settings(
    device="cpu",
    workers=0,
    data=DataSettings(min_images=2),
    train=TrainSettings(backbone="test_resnet", weights="random", freeze_stride=0, neck=16, epochs=2, batch=4, crop=33),
    rca=RcaSettings(slots=8, prototypes=2, confidence=0.0),
    localise=LocaliseSettings(scales=(1.0,), max_side=64),
    masks=MaskSettings(unsure=0.005),
    segment=SegmentSettings(decoder_channels=8, epochs=2, batch=4, crop=32, max_side=64, predict_scales=(1.0,)),
    report=ReportSettings(examples=3),
)


@pytest.fixture(scope="session")
def draw(draw_folder: Callable[..., Path]) -> Callable[[Path], Path]:
    """Return a function that draws 12 training and 2 validation images of discs with their true masks in a folder."""
    return lambda data: draw_folder(data, [f"photo {i:02}" for i in range(14)], masked=14, val=2)


@pytest.fixture(scope="module")
def data(draw: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pipeline") / "data")


@pytest.fixture(scope="module")
def original(data: Path) -> Fitted:
    fitted = fit(data, data.parent / "run", SETTINGS)
    assert fitted is not None
    return fitted


@pytest.fixture
def finished(original: Fitted, tmp_path: Path) -> Run:
    """Return a copy of the finished run, to be spoiled."""
    return Run(shutil.copytree(original.run, tmp_path / "run"))


def times(root: Path) -> dict[str, int]:
    return {path.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_fit_leaves_everything(original: Fitted, data: Path) -> None:
    names = {f"photo {i:02}" for i in range(14)}
    training = {name for name in names if name < "photo 12"}
    expected = {"settings.toml", "manifest.json", "data.json", "evaluation.json", "evaluation.md", "report.html"}
    expected.add("quality.jsonl")
    expected |= {
        f"{net}/{file}" for net in ("network", "segmenter") for file in ("network.safetensors", "network.json")
    }
    expected |= {"network/bank.safetensors", "network/history.jsonl", "segmenter/history.jsonl"}
    expected |= {f"maps/{name}.npz" for name in training}
    expected |= {f"{folder}/{name}.png" for folder in ("masks", "masks_without_void") for name in training}
    expected |= {f"{folder}/classes.json" for folder in ("masks", "masks_without_void", "predictions")}
    found = set(times(original.run))
    assert found - {name for name in found if name.startswith("predictions/photo")} == expected
    # Both validation images, and three training images for the report.
    predicted = {Path(name).stem for name in found if name.startswith("predictions/photo")}
    assert names - training < predicted and len(predicted) == 5
    assert original.masks == original.run / "masks" and original.report == original.run / "report.html"


def test_a_notebook_shows_a_finished_run(original: Fitted) -> None:
    page = original._repr_html_()
    assert page.count('<img src="data:image/jpeg;base64,') == 4 and "<td>blue</td>" in page and "<td>red</td>" in page
    assert str(original.masks) in page and "12 masks, expected IoU" in page
    assert repr(original).startswith("Fitted(run='") and "\n" not in repr(original) and len(repr(original)) < 1000


def test_wrong_arguments_are_answered_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"fit\(\) has no argument epochs\. It is a setting, train\.epochs or segment"):
        fit(data, tmp_path / "run", epochs=3)  # type: ignore[call-overload]
    assert not (tmp_path / "run").exists()


def test_photographs_and_tags_may_be_given_as_values(data: Path, tmp_path: Path) -> None:
    given = {str(data / f"images/photo {i:02}.png"): [["red"], ["blue"], ["blue", "red"]][i % 3] for i in range(12)}
    run = fit_until(given, tmp_path / "run", "train", SETTINGS)
    assert run.data_root() == data / "images" and (tmp_path / "run.tags.csv").exists()
    assert fit_until(given, tmp_path / "run", "train").done("train"), "the same data continue the run"
    given.popitem()
    with pytest.raises(RunError, match=r"1 image gone \(first photo 11\)"):
        fit_until(given, tmp_path / "run", "train")


def test_masks_hold_the_tags_of_their_image_and_nothing_else(original: Fitted) -> None:
    for i in range(12):
        tags = {0: {2}, 1: {1}, 2: {1, 2}}[i % 3]
        mask = read_mask_file(original.masks / f"photo {i:02}.png", (48, 64))
        decided = read_mask_file(original.run / "masks_without_void" / f"photo {i:02}.png", (48, 64))
        assert set(np.unique(mask)) <= {0, VOID} | tags and set(np.unique(decided)) <= {0} | tags
        assert (mask[mask != VOID] == decided[mask != VOID]).all()


def test_the_figures_are_those_of_the_run(original: Fitted) -> None:
    assert original.evaluation == read_evaluation(Run(original.run))
    assert original.evaluation.classes == ("background", "blue", "red")
    pseudo, segmenter = original.evaluation.pseudo_masks, original.evaluation.segmenter
    assert pseudo is not None and segmenter is not None and (pseudo.images, segmenter.images) == (12, 2)
    assert 0 < pseudo.miou < 1 and 0 <= segmenter.miou < 1


def test_the_verdict_on_every_class_has_an_expected_iou(original: Fitted) -> None:
    verdicts = class_verdicts(Run(original.run))
    assert [one.name for one in verdicts] == ["blue", "red"]
    assert all(one.expected is not None and 0 <= one.expected <= 1 for one in verdicts)


def test_every_stage_is_in_the_manifest(original: Fitted, data: Path) -> None:
    manifest = Run(original.run).manifest()
    assert tuple(manifest.stages) == STAGES and manifest.data == str(data)
    assert all(note.seconds is not None and note.seconds >= 0 and note.files for note in manifest.stages.values())
    listed = {name for note in (*manifest.stages.values(), *manifest.others.values()) for name in note.files}
    assert listed == set(times(original.run)) - {"settings.toml", "manifest.json"}
    assert Run(original.run).settings() == SETTINGS


def test_fit_again_does_nothing(finished: Run, original: Fitted, data: Path) -> None:
    before = times(finished.root)
    again = fit(data, finished.root, SETTINGS)
    assert again == Fitted(finished.root, finished.masks, original.evaluation, finished.report_file)
    after = times(finished.root)
    assert after == before
    # Without settings those of the run are taken, not the defaults.
    fit(data, finished.root)
    assert finished.settings() == SETTINGS and times(finished.root).keys() == before.keys()


def test_fit_stops_and_continues_where_it_is_told(finished: Run, original: Fitted, data: Path) -> None:
    finished.discard("masks")
    before = times(finished.root)
    assert fit_until(data, finished.root, "masks") == finished
    assert tuple(finished.manifest().stages) == STAGES[:3] and not finished.segmenter.exists()
    rewritten = {name for name, time in times(finished.root).items() if before.get(name) != time}
    assert {name.split("/")[0] for name in rewritten} == {
        "masks",
        "masks_without_void",
        "manifest.json",
    }
    for name, digest in Run(original.run).manifest().stages["masks"].files.items():
        assert finished.manifest().stages["masks"].files[name] == digest


def test_the_old_way_to_stop_names_the_new_one(finished: Run, data: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"fit\(until=\.\.\.\) is deprecated: use tagseg\.fit_until"):
        assert fit(data, finished.root, until="masks") is None
    with pytest.warns(DeprecationWarning):
        assert fit(data, finished.root, until="report") == fit(data, finished.root)


CHILD = """
import sys, time
from tagseg.pipeline import fit, fit_until
from tagseg.settings.settings import Settings

def slowly(items, title, total):
    for item in items:
        time.sleep(0.1)
        yield item

fit(sys.argv[1], sys.argv[2], Settings.from_toml(sys.argv[3]), track=slowly)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_after_a_kill_the_training_resumes_after_the_last_epoch(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = dataclasses.replace(SETTINGS, train=dataclasses.replace(SETTINGS.train, epochs=5))
    (tmp_path / "s.toml").write_text(settings.to_toml())
    # Sums are rounded differently by another number of threads.
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = Run(tmp_path / "run")
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, data, run.root, tmp_path / "s.toml"], env=environment, stderr=subprocess.DEVNULL
    )
    checkpoint, deadline = run.network / "checkpoint.safetensors", time.monotonic() + 100
    while not checkpoint.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.15)  # into the next epoch
    child.kill()
    assert child.wait() == -signal.SIGKILL
    epochs = len(load_tensors(checkpoint)[1]["history"])
    assert 1 <= epochs < 5 and not run.done("train")
    with caplog.at_level("INFO", "tagseg"):
        fit_until(data, run.root, "train")
    assert f"resuming after epoch {epochs} of 5" in caplog.text and f"epoch {epochs}:" not in caplog.text
    fit_until(data, tmp_path / "undisturbed", "train", settings)
    for name in ("network.safetensors", "bank.safetensors", "network.json"):
        assert (run.network / name).read_bytes() == (tmp_path / "undisturbed/network" / name).read_bytes()
    assert not list(run.network.glob("checkpoint*"))


def test_data_that_changed_is_refused_or_learned_from(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    data, run = draw(tmp_path / "data"), Run(tmp_path / "run")
    fit_until(data, run.root, "localise", SETTINGS)
    with (data / "tags.csv").open("a") as file:
        Image.new("RGB", (20, 20)).save(data / "images" / "new.png")
        file.write("new.png,red,train\n")
    # All stages that are asked for are done: the change is noticed all the same.
    with pytest.raises(RunError, match=r"have changed since this run began: 1 image added \(first new\)"):
        fit_until(data, run.root, "localise", SETTINGS)
    assert run.done("localise") and not map_file(run, "new").exists()
    fit_until(data, run.root, "localise", SETTINGS, force=True)
    assert run.done("localise") and map_file(run, "new").exists()


def test_a_run_follows_its_data_to_another_place(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    data, moved = draw(tmp_path / "data"), tmp_path / "server" / "photos"
    run = Run(tmp_path / "run")
    fit_until(data, run.root, "masks", SETTINGS)
    before = result_checksums(run)
    moved.parent.mkdir()
    data.rename(moved)
    asked = (
        rf"{data}: no such folder, expected the data of {run.root}; .* `tagseg fit PLACE --out {run.root}` continues"
    )
    with pytest.raises(RunError, match=asked):
        run_stage(run.root, "segment")
    fit_until(moved, run.root, "masks")
    assert run.data_root() == moved and not examine(run.root).damage
    assert {name for name, digest in result_checksums(run).items() if digest != before[name]} == {"data.json"}
    assert run_stage(run.root, "segment").done("segment")
    with (moved / "tags.csv").open("a") as file:
        Image.new("RGB", (20, 20)).save(moved / "images/new.png")
        file.write("new.png,red,train\n")
    other = Path(shutil.copytree(moved, tmp_path / "other"))
    with pytest.raises(RunError, match=rf"not from what {other} holds: 1 image added \(first new\); choose another"):
        fit_until(other, run.root, "masks", force=True)
    assert run.data_root() == moved and run.done("segment")


def test_other_validation_images_run_the_evaluation_alone_again(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    data, run = draw(tmp_path / "data"), Run(tmp_path / "run")
    fit(data, run.root, SETTINGS)
    before = times(run.root)
    shutil.copy(data / "images/photo 13.png", data / "images/new.png")
    shutil.copy(data / "masks/photo 13.png", data / "masks/new.png")
    with (data / "tags.csv").open("a") as file:
        file.write("new.png,red,val\n")
    again = r"1 image added \(first new\).*--force` \(the stages from evaluate on run again\)"
    with pytest.raises(RunError, match=again):
        fit(data, run.root)
    fit(data, run.root, force=True)
    assert run.done("report") and (run.predictions / "new.png").is_file() and not examine(run.root).damage
    assert all(times(run.root)[name] == time for name, time in before.items() if name.startswith(("network", "segm")))


def test_bad_data_is_named_and_can_be_mended(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    data = draw(tmp_path / "data")
    tags = (data / "tags.csv").read_text()
    (data / "tags.csv").write_text(tags + "gone.png,red,train\n")
    with pytest.raises(DataError, match=r"tags\.csv, row 16: image 'gone\.png' is missing"):
        fit_until(data, tmp_path / "run", "train", SETTINGS)
    (data / "tags.csv").write_text(tags)
    fit_until(data, tmp_path / "run", "train", SETTINGS)
    assert Run(tmp_path / "run").done("train")


def test_unavailable_weights_can_be_replaced(data: Path, tmp_path: Path) -> None:
    hub = dataclasses.replace(SETTINGS, train=dataclasses.replace(SETTINGS.train, weights="timm"))
    with pytest.raises(ValueError, match=r"pretrained weights of test_resnet are not available .*Connect once.*FILE"):
        fit_until(data, tmp_path / "run", "train", hub)
    fit_until(data, tmp_path / "run", "train", SETTINGS)
    assert Run(tmp_path / "run").done("train")


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_needs_the_one_before(stage: Stage, finished: Run) -> None:
    before = STAGES[STAGES.index(stage) - 1]
    finished.discard(before)
    with pytest.raises(RunError, match=f"stage {before} has not finished; run `tagseg {before} .*run` first"):
        run_stage(finished.root, stage)
    assert not finished.done(stage)


def test_a_finished_stage_needs_force_and_undoes_the_later_ones(finished: Run) -> None:
    before = times(finished.root)
    with pytest.raises(RunError, match="stage segment is done; --force runs it again"):
        run_stage(finished.root, "segment")
    assert times(finished.root) == before
    network = (finished.segmenter / "network.safetensors").read_bytes()
    assert run_stage(finished.root, "segment", force=True) == finished
    assert (finished.segmenter / "network.safetensors").read_bytes() == network
    assert tuple(finished.manifest().stages) == STAGES[:4]
    assert not any((finished.root / name).exists() for stage in STAGES[4:] for name in OUTPUTS[stage])
    assert all(
        times(finished.root)[name] == time for name, time in before.items() if name.startswith(("maps", "masks"))
    )


def test_one_picture_shows_training_images_and_new_ones(finished: Run) -> None:
    sheet = draw_overview(finished, prepare(finished), rows=2, new=1)
    assert sheet.mode == "RGB" and sheet.width == 5 * 246 and sheet.height == 22 + 3 * 186
    columns = np.asarray(sheet)[22:, :].reshape(-1, 5, 246, 3)
    assert [bool((columns[:, column] != 255).any()) for column in range(5)] == [True] * 5
    last = np.asarray(sheet)[22 + 2 * 186 :].reshape(-1, 5, 246, 3)
    # A new image has neither maps nor a pseudo-mask.
    assert [bool((last[:, column] != 255).any()) for column in range(5)] == [True, False, False, True, True]


def test_a_stage_with_other_settings(finished: Run) -> None:
    other = dataclasses.replace(SETTINGS, masks=MaskSettings(background="threshold", threshold=0.6))
    with pytest.raises(RunError, match=r"masks\.background was 'auto', now 'threshold'"):
        run_stage(finished.root, "masks", other)
    run_stage(finished.root, "masks", other, force=True)
    assert finished.settings() == other and tuple(finished.manifest().stages) == STAGES[:3]


def test_a_stage_with_settings_of_an_earlier_one_undoes_nothing(finished: Run) -> None:
    other = dataclasses.replace(SETTINGS, train=dataclasses.replace(SETTINGS.train, epochs=9))
    with pytest.raises(RunError, match=r"train\.epochs was 2, now 9.*start with `tagseg train"):
        run_stage(finished.root, "masks", other, force=True)
    assert finished.done("report") and finished.settings() == SETTINGS


def test_a_stage_of_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    for settings in (None, SETTINGS):
        with pytest.raises(RunError, match="not a run folder"):
            run_stage(tmp_path, "masks", settings, force=True)
    assert not list(tmp_path.iterdir())


def test_three_lines_of_python(original: Fitted, data: Path, tmp_path: Path) -> None:
    fitted = tagseg.fit(data, original.run)
    assert fitted == original
    done = tagseg.predict(original.run, data / "images", tmp_path / "masks")
    assert len(done.ids) == 14 and json.loads((tmp_path / "masks/classes.json").read_text())["2"] == "red"


def test_the_package_exports_its_functions_when_they_are_used() -> None:
    assert tagseg.fit is fit and tagseg.run_stage is run_stage and tagseg.Settings is Settings
    assert set(tagseg.__all__) <= set(dir(tagseg))
    assert all(getattr(tagseg, name).__doc__ for name in tagseg.__all__)
    with pytest.raises(AttributeError, match="module 'tagseg' has no attribute 'no_such_thing'"):
        _ = tagseg.no_such_thing


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, tagseg; assert 'torch' not in sys.modules; tagseg.Settings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(SOURCE)}, check=True)


def test_fit_honours_what_was_decided_about_masks(
    finished: Run, original: Fitted, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = times(finished.root)
    mine = np.full((48, 64), 1, np.uint8)
    record_decision(finished, "photo 00", Decision("accepted"), (mine, mine))
    record_decision(finished, "photo 01", Decision("rejected"))
    record_decision(finished, "photo 02", Decision("flagged"))
    with caplog.at_level("INFO", "tagseg"):
        again = fit(data, finished.root, SETTINGS)
    assert again is not None and "2 masks were reviewed after they were made" in caplog.text
    assert "2 masks were reviewed since the segmentation network learned from them" in caplog.text
    after = times(finished.root)
    written = {name for name in after if after[name] != before.get(name)}
    masks = {name for name in written if name.startswith("masks") and "classes.json" not in name}
    assert masks == {f"{folder}/photo {i:02}.png" for folder in ("masks", "masks_without_void") for i in (0, 1)}
    assert "segmenter/network.safetensors" in written and "network/network.safetensors" not in written
    assert (read_mask_file(finished.masks / "photo 00.png") == 1).all()
    assert (read_mask_file(finished.masks / "photo 01.png") == VOID).all()
    # What the tags alone gave is scored, not what a person made of it.
    assert again.evaluation.pseudo_masks == original.evaluation.pseudo_masks
    weights = [load_tensors(root / "segmenter/network.safetensors")[0] for root in (finished.root, original.run)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    caplog.clear()
    fit(data, finished.root, SETTINGS)
    assert "reviewed" not in caplog.text and times(finished.root)["report.html"] == after["report.html"]
