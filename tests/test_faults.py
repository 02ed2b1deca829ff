"""Runs that are killed, stopped, or meet a full disk, and are started again: in the end the bytes are the same.

What counts as the same: see `tagseg.run.doctor.result_checksums`.
"""

import contextlib
import dataclasses
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import tagseg
from tagseg.errors import RunError, WriteError
from tagseg.pipeline import fit, fit_until, run_stage
from tagseg.run.doctor import examine, result_checksums
from tagseg.run.folder import Run
from tagseg.run.memory import MEMORY, memory_named
from tagseg.run.stages import STAGES, Stage
from tagseg.settings.settings import Settings
from tagseg.training.checkpoint import load_tensors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

SOURCE = Path(tagseg.__file__).parents[1]

SERVER = """
import logging, os, sys, time
import torch
from tagseg.pipeline import fit, fit_until

torch.set_num_threads(1)
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("tagseg").setLevel(logging.INFO)

def slowly(items, title, total):
    for item in items:
        time.sleep(0.02)
        yield item

for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            fit(*line.rstrip().split("|"), track=slowly)
        finally:
            os._exit(0)
    print(f"process {child}", flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""
"""Forks a `fit` for every line: torch is imported once."""


@pytest.fixture(scope="module")
def settings(tiny: Settings) -> Settings:
    segment = {"rounds": 2, "epochs": 2, "batch": 4, "crop": 32, "max_side": 64, "predict_scales": (1.0,)}
    segment |= {"decoder_channels": 8}
    return dataclasses.replace(
        tiny,
        workers=2,
        segment=dataclasses.replace(tiny.segment, **segment),
        report=dataclasses.replace(tiny.report, examples=3),
    )


@pytest.fixture(scope="module")
def original(discs: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return an undisturbed run."""
    root = tmp_path_factory.mktemp("faults") / "run"
    fit(discs, root, settings)
    return Run(root)


@pytest.fixture(scope="module")
def alone(discs: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return an undisturbed run without worker processes, whose start takes longer than all else."""
    root = tmp_path_factory.mktemp("alone") / "run"
    fit(discs, root, dataclasses.replace(settings, workers=0))
    return Run(root)


@pytest.fixture
def rewound(original: Run, tmp_path: Path) -> Callable[..., Run]:
    """Return a function that copies it, or another run, and undoes a stage and all that follow."""

    def rewound(stage: Stage, whole: Run = original) -> Run:
        run = Run(shutil.copytree(whole.root, tmp_path / "run"))
        run.discard(stage)
        return run

    return rewound


@pytest.fixture(scope="module")
def server() -> "Iterator[subprocess.Popen[str]]":
    # Sums are rounded differently by another number of threads.
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, env=environment, **pipes) as child:  # type: ignore[call-overload]
        yield child
        child.stdin.close()


def kill_in(server: "subprocess.Popen[str]", data: Path, run: Run, stage: Stage, seconds: float) -> None:
    """Start `fit`, and kill it so many seconds after it has begun a stage."""
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(f"{data}|{run.root}\n")
    server.stdin.flush()
    child = int(server.stdout.readline().removeprefix("process "))
    for line in server.stdout:
        if line.startswith(f"stage {stage}"):
            break
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    for line in server.stdout:
        if line == "ended\n":
            return


# tests/training/test_resume.py kills the two stages between.
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("localise", "masks")])
def test_after_a_kill_at_a_random_moment_the_bytes_are_the_same(
    stage: Stage, original: Run, rewound: Callable[..., Run], discs: Path, server: "subprocess.Popen[str]"
) -> None:
    run = rewound(stage)
    longest = {"train": 1.5, "segment": 4.0}.get(stage, 0.8)
    seconds = random.Random().uniform(0, longest)
    kill_in(server, discs, run, stage, seconds)
    fit(discs, run.root)
    assert result_checksums(run) == result_checksums(original), f"killed after {seconds} s"
    assert not examine(run.root).damage and not list(run.root.rglob(".writing-*"))


def _processes(named: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [line] if named in line and "tagseg" in line else []
    return found


class Crash(BaseException):
    """Stands for the end of the process."""


CRASHES: list[tuple[Stage, str, str]] = [
    ("train", "data.json", "after"),
    ("train", "network/checkpoint.safetensors", "before"),
    ("train", "network/checkpoint.safetensors", "after"),
    ("train", "network/bank.safetensors", "after"),
    ("train", "network/network.safetensors", "after"),
    ("train", "network/history.jsonl", "after"),
    ("train", "manifest.json", "before"),
    ("localise", "manifest.json", "after"),
    ("masks", "masks/classes.json", "after"),
    ("segment", "self_training/round_1/segmenter/network.safetensors", "after"),
    ("segment", "self_training/round_1/segmenter/history.jsonl", "after"),
    ("segment", "self_training/round_1/settings.toml", "after"),
    ("segment", "segmenter/network.json", "after"),
    ("segment", "manifest.json", "before"),
    ("evaluate", "evaluation.json", "after"),
    ("report", "report.html", "after"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name", "moment"), CRASHES)
def test_after_a_crash_between_two_files_the_bytes_are_the_same(
    stage: Stage,
    name: str,
    moment: str,
    original: Run,
    alone: Run,
    rewound: Callable[..., Run],
    discs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Mask workers are at work in these stages: the crash leaves them behind.
    whole = original if stage in ("localise", "masks") else alone
    run, replace = rewound(stage, whole), Path.replace

    def crashing(self: Path, target: Path) -> Path:
        if target == run.root / name:
            if moment == "after":
                replace(self, target)
            raise Crash
        return replace(self, target)

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Path, "replace", crashing)
        fit(discs, run.root)
    fit(discs, run.root)
    assert result_checksums(run) == result_checksums(whole) and not examine(run.root).damage


def test_a_run_starts_after_a_crash_before_its_manifest(discs: Path, tiny: Settings, tmp_path: Path) -> None:
    root = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Run, "store", _crash)
        fit(discs, root, tiny)
    assert [path.name for path in root.iterdir()] == ["settings.toml"]
    (root / ".writing-0.toml").touch()
    (root / ".lock").touch()
    fit_until(discs, root, "train", tiny)
    assert Run(root).done("train") and not (root / ".writing-0.toml").exists()


def _crash(*_: object) -> None:
    raise Crash


def test_a_training_that_was_finished_is_not_done_again(
    rewound: Callable[..., Run], discs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = rewound("segment")
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr("tagseg.run.folder.checksum", _crash)
        fit_until(discs, run.root, "segment")
    caplog.clear()
    with caplog.at_level("INFO", "tagseg"):
        fit_until(discs, run.root, "segment")
    assert run.done("segment") and "stage segment" in caplog.text and "epoch 1:" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_reported_with_the_file_and_the_run_continues(
    stage: Stage, alone: Run, rewound: Callable[..., Run], discs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write fails, and one in ten from there on, as where somebody else makes and takes room."""
    # In this process alone: workers would not meet the full disk.
    run, chance, fsync = rewound(stage, alone), random.Random(stage), os.fsync
    told: list[str] = []

    def full(file: int) -> None:
        if not told or chance.random() < 0.1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        while len(told) < 100 and not run.done(stage):
            try:
                fit_until(discs, run.root, stage)
            except (WriteError, RunError) as error:
                told.append(str(error))
    assert run.done(stage) and told and not list(run.root.rglob(".writing-*"))
    for said in told:
        assert f"{run.root}" in said and "cannot be written: the disk is full; free some space and run" in said
    made, whole = result_checksums(run), result_checksums(alone)
    assert made == {name: whole[name] for name in made}


def test_clocks_may_go_backwards(
    original: Run, rewound: Callable[..., Run], discs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files from the future, and a clock that loses an hour whenever it is asked."""
    run, now = rewound("masks"), iter(range(10**9, 0, -3600))
    for path in run.root.rglob("*"):
        os.utime(path, (4e9, 4e9))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    fit(discs, run.root)
    assert result_checksums(run) == result_checksums(original) and not examine(run.root).damage
    assert all(note.seconds is not None and note.seconds >= 0 for note in run.manifest().stages.values())


COMMAND = """
import sys, time
from tagseg.run.clock import Clock

def slowly(clock, items, title, total):
    for done, item in enumerate(items, 1):
        if title.startswith(sys.argv[1]) and done == 2:
            print("now", flush=True)
            time.sleep(600 if title.startswith(("localise", "masks")) else 0.5)
        yield item

Clock.__call__ = slowly
import torch
torch.set_num_threads(1)
from tagseg.cli.main import main
main(sys.argv[2:])
"""
"""The command line; it says where it is, and waits there: in a training for the signal, which lets the step be done."""


def command(title: str, data: Path, run: Run) -> "subprocess.Popen[str]":
    """Start `tagseg fit`, which has come to the second item of `title` when this returns."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, title, "fit", data, "--out", run.root],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "now\n"
    return child


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="nothing tells which processes there are")
@pytest.mark.parametrize("title", ["train, epoch 1", "masks"])
def test_a_killed_run_leaves_no_processes(title: str, rewound: Callable[..., Run], discs: Path) -> None:
    run = rewound("train" if title.startswith("train") else "masks")
    child = command(title, discs, run)
    assert len(_processes(str(run.root))) == 3  # two work for it
    child.kill()
    child.communicate()
    deadline = time.monotonic() + 60
    while (left := _processes(str(run.root))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "title", "status"),
    [
        (signal.SIGTERM, "train, epoch 2", 143),
        (signal.SIGINT, "masks", 130),
    ],
)
def test_a_signal_ends_a_command_which_says_how_to_continue(
    number: signal.Signals,
    title: str,
    status: int,
    original: Run,
    rewound: Callable[..., Run],
    discs: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage: Stage = next(stage for stage in STAGES if title.startswith(stage))
    run = rewound(stage)
    child = command(title, discs, run)
    # As a terminal does, or a batch system: to the whole group, of which workers are not part.
    os.killpg(child.pid, number)
    _, said = child.communicate(timeout=100)
    assert child.returncode == status, said
    assert said.rstrip().endswith("Interrupted. Run the same command again to continue.") and "Traceback" not in said
    assert not _processes(str(run.root)) and not (run.root / ".lock").exists()
    training = {"train": run.network, "segment": run.round(1).segmenter}.get(stage)
    if training:
        partway = load_tensors(training / "checkpoint.safetensors")[1]["partway"]
        assert partway["done"] == 2
    with caplog.at_level("INFO"):
        fit(discs, run.root)
    assert not training or f"resuming after step 2 of epoch {title[-1]} of 2" in caplog.text
    assert result_checksums(run) == result_checksums(original)


@pytest.mark.parametrize("maps", ["oaa", "cam"])
def test_a_training_stopped_after_every_step_gives_the_same_bytes(
    maps: str, discs: Path, tiny: Settings, tmp_path: Path
) -> None:
    settings = Settings.from_dict(tiny.to_dict() | {"maps": maps, "workers": 1})
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, epochs=3))
    fit_until(discs, tmp_path / "whole", "train", settings)
    stops = 0
    for _ in range(20):

        def stop_at_once(items, title, total):  # type: ignore[no-untyped-def]
            for item in items:
                if title.startswith("train"):
                    signal.raise_signal(signal.SIGINT)
                yield item

        try:
            fit_until(discs, tmp_path / "stopped", "train", settings, track=stop_at_once)
            break
        except KeyboardInterrupt:
            stops += 1
    # Three batches an epoch, of which the last of one image is dropped: two, and no epoch follows the last.
    assert stops == 6
    assert result_checksums(Run(tmp_path / "stopped")) == result_checksums(Run(tmp_path / "whole"))


def test_memory_that_runs_out_names_the_settings_to_lower(
    rewound: Callable[..., Run], discs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rewound("segment")

    def too_much(*_: object, **__: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr("tagseg.segment.train.mask_loss", too_much)
    message = r"stage segment ran out of memory \(.*\); lower --segment\.batch \(now 4\), --segment\.crop \(now 32\), "
    with pytest.raises(RunError, match=message):
        run_stage(run.root, "segment")
    monkeypatch.undo()
    fit_until(discs, run.root, "segment")
    assert run.done("segment")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
     RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
     RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")],
)  # fmt: skip
def test_every_way_in_which_memory_runs_out_is_known(error: Exception, tmp_path: Path) -> None:
    for stage in STAGES:
        with pytest.raises(RunError, match=f"stage {stage} ran out of memory .*; lower --"):  # noqa: SIM117
            with memory_named(tmp_path, stage, Settings()):
                raise error
    for stage, names in MEMORY.items():
        assert stage in STAGES and names
    frozen = Settings.from_dict({"train": {"method": "frozen"}})
    with pytest.raises(RunError, match=r"lower --features\.max-side \(now 320\), --features\.channels"):  # noqa: SIM117
        with memory_named(tmp_path, "train", frozen):  # its --train.batch would be refused
            raise error


def test_other_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_named(tmp_path, "train", Settings()):
        raise RuntimeError("shapes do not fit")
    ended = RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly")
    with pytest.raises(RunError, match=r"its own error is above.*__main__"):  # noqa: SIM117
        with memory_named(tmp_path, "train", Settings()):
            raise ended
