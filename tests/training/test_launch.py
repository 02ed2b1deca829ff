"""The command line under `accelerate launch`: processes of their own, as they are used."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import tagseg
from tagseg.pipeline import fit, run_stage
from tagseg.run.folder import Run
from tagseg.run.stages import STAGES
from tagseg.settings.settings import Settings
from tagseg.studies.full_supervision import train_upper_bound
from tagseg.system.process import launched

SOURCE = Path(tagseg.__file__).parents[1]


def start(data: Path, run: Path, settings: Path) -> subprocess.Popen[str]:
    """Start two processes that train the classifier on the CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(port), "-m", "tagseg", "fit", str(data), "--out", str(run), "-v"]
    command += ["--until", "train", "--settings", str(settings)]
    # An own folder, or accelerate would read the configuration of whoever runs the tests.
    own = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HOME": str(run.parent / "home"), "COLUMNS": "200"}
    return subprocess.Popen(
        command, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture
def settings_file(tiny: Settings, tmp_path: Path) -> Path:
    file = tmp_path / "settings.toml"
    file.write_text(dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, epochs=30)).to_toml())
    return file


def wait_for_checkpoint(run: Run, training: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 500
    while not (run.network / "checkpoint.safetensors").exists():
        assert training.poll() is None, training.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_process_ends_the_launch_and_the_next_one_continues(
    discs: Path, settings_file: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    training = start(discs, run.root, settings_file)
    try:
        wait_for_checkpoint(run, training)
        children = [child for child in psutil.Process(training.pid).children() if child.environ().get("RANK")]
        assert sorted(child.environ()["RANK"] for child in children) == ["0", "1"]
        next(child for child in children if child.environ()["RANK"] == "1").kill()
        _, errors = training.communicate(timeout=300)
    finally:
        training.kill()
    assert training.returncode != 0
    assert "SIGKILL" in errors  # the launcher says which process, and how it ended
    assert not any(child.is_running() for child in children)
    assert not run.done("train")

    again = start(discs, run.root, settings_file)
    try:
        said, errors = again.communicate(timeout=580)
    finally:
        again.kill()
    assert again.returncode == 0, errors
    assert said.count("Done up to stage train") == 1
    assert errors.count("resuming after epoch") == 1 and errors.count("epoch 30: ") == 1
    rows = [json.loads(line) for line in (run.network / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 31))
    assert run.done("train") and not list(run.root.rglob(".writing-*"))


@pytest.mark.slow
def test_all_stages_by_two_processes(
    discs: Path, tiny: Settings, together: Callable[..., list[Any]], tmp_path: Path
) -> None:
    data = shutil.copytree(discs, tmp_path / "data")
    header, *lines = (data / "tags.csv").read_text().splitlines()
    rows = [f"{line},{'val' if line[0] in '23' else 'train'}" for line in lines]
    (data / "tags.csv").write_text("\n".join([f"{header},split", *rows]) + "\n")
    segment = dataclasses.replace(
        tiny.segment, epochs=1, batch=4, crop=32, max_side=64, predict_scales=(1.0,), predict_flip=False, rounds=2
    )
    settings = dataclasses.replace(tiny, segment=segment)
    root = tmp_path / "run"

    def everything() -> list[Any]:
        fitted = fit(data, root, settings)
        assert fitted is not None and fitted.evaluation.segmenter is not None
        run_stage(root, "evaluate", force=True)
        bound = train_upper_bound(root)
        return [fitted.evaluation.segmenter.miou, bound.scores.miou, bound.share]

    one, two = together(2, everything, seconds=580)
    assert isinstance(one, list), one
    assert one == two
    run = Run(root)
    assert set(run.manifest().stages) == set(STAGES[:5])  # the report follows the evaluation, which was done again
    assert len(list(run.masks.glob("[0-9]*.png"))) == 7
    assert (run.round(1).segmenter / "network.safetensors").exists() and not list(root.rglob(".writing-*"))


def test_the_launchers_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")  # some clusters set it for any job
    assert launched() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert launched() == (3, 4)
