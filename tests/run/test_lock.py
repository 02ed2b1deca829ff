import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tagseg
from tagseg.errors import RunError
from tagseg.pipeline import run_stage
from tagseg.run import lock
from tagseg.run.lock import hold_lock, share_lock
from tagseg.run.open import open_run
from tagseg.settings.settings import Settings

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="requires file locks")

SOURCE = Path(tagseg.__file__).parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from tagseg.run.lock import {how}

with {how}(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(root: Path, how: str = "hold_lock") -> "subprocess.Popen[str]":
    """Start a process that holds the lock until it is killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(how=how), root],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def end(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.communicate()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 0.3)


@pytest.mark.usefixtures("impatient")
def test_a_second_process_is_refused_and_the_error_names_the_first(tmp_path: Path) -> None:
    child = hold(tmp_path / "run")
    try:
        message = rf"run: another tagseg command is writing to it \(process {child.pid} on .+\); wait until it ends, st"
        with pytest.raises(RunError, match=message), hold_lock(tmp_path / "run"):
            pass
    finally:
        end(child)
    # The file that it left locks nothing.
    assert (tmp_path / "run/.lock").exists()
    with hold_lock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run/.lock").exists()


@pytest.mark.usefixtures("impatient")
def test_a_single_stage_is_refused_too_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    run = open_run(tmp_path / "run", tmp_path / "data", Settings())
    before = run.settings_file.read_bytes(), run.manifest_file.read_bytes()
    with hold_lock(run.root), pytest.raises(RunError, match=rf"writing to it \(process {os.getpid()} on "):
        run_stage(run.root, "train", Settings(seed=7), force=True)
    assert (run.settings_file.read_bytes(), run.manifest_file.read_bytes()) == before


def test_a_command_waits_for_the_lock_of_a_process_that_ends(tmp_path: Path) -> None:
    child = hold(tmp_path)
    try:
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {child.pid}"])
        started = time.monotonic()
        with hold_lock(tmp_path):
            assert time.monotonic() - started > 0.3
        killer.wait()
    finally:
        end(child)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.usefixtures("impatient")
def test_a_worker_holds_the_lock_together_with_its_main_process(tmp_path: Path) -> None:
    with hold_lock(tmp_path):
        worker = hold(tmp_path, "share_lock")
        (tmp_path / "before").hardlink_to(tmp_path / ".lock")
    try:
        # The main process ended in the usual way and removed the lock's file: a new lock.
        with hold_lock(tmp_path):
            pass
        # The main process was killed: the lock's file still exists, and the worker holds it.
        (tmp_path / "before").rename(tmp_path / ".lock")
        with pytest.raises(RunError, match="another tagseg command is writing"), hold_lock(tmp_path):
            pass
    finally:
        end(worker)
    with hold_lock(tmp_path):
        pass


def test_a_worker_works_without_a_lock(tmp_path: Path) -> None:
    with share_lock(tmp_path):
        assert not (tmp_path / ".lock").exists()


def test_a_new_folder_is_removed_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold_lock(tmp_path / "a/run"):
        assert (tmp_path / "a/run/.lock").exists()
        raise KeyError
    assert not (tmp_path / "a/run").exists()


def test_a_folder_that_is_not_a_run_gets_no_lock(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with hold_lock(tmp_path), hold_lock(tmp_path / "thesis.tex"):
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OSError, match=r"run/\.lock: cannot be written: the file system is read-only"):  # noqa: SIM117
        with hold_lock(tmp_path / "run"):
            pass


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    with hold_lock(tmp_path):
        pass
    assert "cannot be locked (No locks available); run only one tagseg command on it at a time" in caplog.text


def test_a_link_in_place_of_the_lock_is_refused_and_its_target_keeps_its_content(tmp_path: Path) -> None:
    target, root = tmp_path / "notes.txt", tmp_path / "run"
    target.write_text("mine")
    root.mkdir()
    (root / lock.LOCK).symlink_to(target)
    with pytest.raises(RunError, match=r"must be a file that tagseg made, found a link; remove it"), hold_lock(root):
        pass
    assert target.read_text() == "mine" and (root / lock.LOCK).is_symlink()
    (root / lock.LOCK).unlink()
    (root / lock.LOCK).symlink_to(tmp_path / "nothing")  # would be made
    with pytest.raises(RunError, match="found a link"), hold_lock(root):
        pass
    assert not (tmp_path / "nothing").exists()
