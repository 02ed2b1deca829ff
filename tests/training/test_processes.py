"""`--processes 2`: one process drives, two train; killed, stopped and failing ones, as a user meets them."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import tagseg
from tagseg.pipeline import fit, fit_until, run_stage
from tagseg.run.folder import Run
from tagseg.run.stages import STAGES
from tagseg.settings.settings import Settings
from tagseg.studies.full_supervision import train_upper_bound
from tagseg.training.checkpoint import load_tensors
from tagseg.training.processes import require_devices

SOURCE = Path(tagseg.__file__).parents[1]

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no process groups here")


def start(data: Path, run: Run, settings: Settings) -> subprocess.Popen[str]:
    """Start a driver and two processes that train the classifier on the CPU."""
    file = run.root.with_suffix(".toml")
    file.write_text(settings.to_toml())
    command = [sys.executable, "-m", "tagseg", "fit", str(data), "--out", str(run.root), "--until", "train", "-v"]
    own = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [*command, "--settings", str(file), "--processes", "2"],
        env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(driver: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        said, errors = driver.communicate(timeout=500)
    finally:
        driver.kill()
    return driver.returncode, said, errors


def saved_at(run: Run) -> int:
    """Return when an epoch was saved last; 0 if none was."""
    checkpoint = run.network / "checkpoint.safetensors"
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0


def trainers_of(run: Run, driver: subprocess.Popen[str], before: int = 0) -> dict[str, psutil.Process]:
    """Return the processes that train, by rank, once they have saved an epoch after `before`."""
    deadline = time.monotonic() + 400
    while saved_at(run) <= before:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = [child for child in psutil.Process(driver.pid).children() if "tagseg.trainer" in child.cmdline()]
    return {child.environ()["RANK"]: child for child in children}


def files(run: Run) -> dict[str, bytes]:
    """Return what the training leaves, except for the seconds in its history."""
    return {path.name: path.read_bytes() for path in run.network.iterdir() if path.name != "history.jsonl"}


@pytest.fixture(scope="module")
def settings(tiny: Settings) -> Settings:
    return dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, epochs=24))


@pytest.fixture(scope="module")
def whole(discs: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return an undisturbed run."""
    run = Run(tmp_path_factory.mktemp("processes") / "run")
    status, said, errors = finish(start(discs, run, settings))
    assert status == 0 and said.count("Done up to stage train") == 1, errors
    assert errors.count("epoch 24: ") == 1  # only the main one's lines are shown
    return run


@pytest.mark.slow
def test_however_often_it_is_ended_the_training_resumes_and_ends_with_the_same_bytes(
    whole: Run, discs: Path, settings: Settings, tmp_path: Path
) -> None:
    """A killed driver, a killed process and a signal, one after the other: every start takes many seconds."""
    run = Run(tmp_path / "run")
    driver = start(discs, run, settings)
    trainers = trainers_of(run, driver)
    assert sorted(trainers) == ["0", "1"]
    driver.kill()
    finish(driver)
    _, alive = psutil.wait_procs(list(trainers.values()), timeout=60)
    assert not alive, "the processes end with a driver that was killed"

    before = saved_at(run)
    driver = start(discs, run, settings)
    trainers = trainers_of(run, driver, before)
    assert sorted(trainers) == ["0", "1"]
    trainers["1"].kill()
    status, _, errors = finish(driver)
    assert status == 2 and "Error: process 1 of 2 was killed by signal 9" in errors
    assert "Run the same command again to resume after the last finished epoch" in errors
    assert "Traceback" not in errors and not any(child.is_running() for child in trainers.values())
    assert not run.done("train")

    before = saved_at(run)
    driver = start(discs, run, settings)
    trainers = trainers_of(run, driver, before)
    assert sorted(trainers) == ["0", "1"]
    driver.send_signal(signal.SIGTERM)
    status, _, errors = finish(driver)
    assert status == 143 and "Interrupted. Run the same command again" in errors, errors
    assert errors.count("resuming after epoch") == 1
    assert "Traceback" not in errors and not any(child.is_running() for child in trainers.values())
    _, about = load_tensors(run.network / "checkpoint.safetensors")
    assert len(about["history"]) < settings.train.epochs

    status, _, errors = finish(start(discs, run, settings))
    assert status == 0 and errors.count("resuming after") == 1, errors
    assert files(run) == files(whole) and not list(run.root.rglob(".writing-*"))


@pytest.mark.slow
def test_the_error_of_a_process_is_the_drivers(discs: Path, settings: Settings, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    broken = dataclasses.replace(settings, train=dataclasses.replace(settings.train, lr=1e30))
    status, _, errors = finish(start(discs, run, broken))
    assert status == 2 and "lower --train.lr (its rate was" in errors and "Traceback" not in errors, errors
    assert errors.count("Error: ") == 1 and "another process" not in errors


@pytest.mark.slow
def test_all_trainings_of_a_run_by_two_processes(discs: Path, tiny: Settings, tmp_path: Path) -> None:
    data = shutil.copytree(discs, tmp_path / "data")
    header, *lines = (data / "tags.csv").read_text().splitlines()
    rows = [f"{line},{'val' if line[0] in '23' else 'train'}" for line in lines]
    (data / "tags.csv").write_text("\n".join([f"{header},split", *rows]) + "\n")
    segment = dataclasses.replace(
        tiny.segment,
        start="classifier",
        epochs=1,
        batch=4,
        crop=32,
        max_side=64,
        predict_scales=(1.0,),
        predict_flip=False,
        rounds=2,
    )
    titles: list[str] = []

    def track(items, title, total):  # type: ignore[no-untyped-def]
        titles.append(title)
        return iter(items)

    fitted = fit(data, tmp_path / "run", dataclasses.replace(tiny, segment=segment), track=track, processes=2)
    assert fitted is not None and fitted.evaluation.segmenter is not None
    assert titles.count("train, epoch 2/2") == 1 and titles.count("segment, epoch 1/1") == 2
    run = Run(tmp_path / "run")
    assert tuple(run.manifest().stages) == STAGES
    assert (run.round(1).segmenter / "network.safetensors").exists() and not list(run.root.rglob(".writing-*"))
    # The upper bound learns from the two images that have true masks.
    bound = train_upper_bound(run.root, processes=2)
    assert bound.share == pytest.approx(fitted.evaluation.segmenter.miou / bound.scores.miou)
    assert sorted(path.stem for path in run.full_supervision.masks.glob("*.png")) == ["0", "1"]


def test_a_number_of_processes_that_cannot_be(
    discs: Path, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="--processes must be 1 or more, got 0"):
        fit_until(discs, tmp_path / "run", "train", tiny, processes=0)
    with pytest.raises(ValueError, match="--processes 2: each process needs a device of its own, got --device cuda:1"):
        require_devices(2, "cuda:1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="--processes 2: each process needs a GPU of its own, this machine has 1"):
        require_devices(2, "auto")
    require_devices(2, "cpu")
    fit_until(discs, tmp_path / "run", "train", tiny)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    message = "--processes 2 cannot be combined with accelerate launch, which started 2 processes"
    with pytest.raises(ValueError, match=message):
        run_stage(tmp_path / "run", "train", force=True, processes=2)
