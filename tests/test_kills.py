"""Commands that are killed between any two operations on files, and run again: the short version of the benchmark
benchmarks/reliability/faults.py, in one process."""

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tagseg.cli.main import app
from tagseg.data.prepare import prepare
from tagseg.errors import RunError
from tagseg.export.formats import export
from tagseg.importing.import_masks import import_masks
from tagseg.masks.update import update_masks
from tagseg.run.decisions import Decision, record_decision
from tagseg.run.doctor import examine
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.run.open import change_settings

ROOT = Path(__file__).resolve().parents[1]

KILLS = 6
"""Kills per command, spread over its operations."""


def decide_and_update(run: Run, out: Path) -> None:
    with hold_lock(run.root):
        update_masks(prepare(run), run)


def export_anew(run: Run, out: Path) -> None:
    export(run.root, "cvat", out)


def export_again(run: Run, out: Path) -> None:
    export(run.root, "cvat", out, force=True)


def import_anew(run: Run, out: Path) -> None:
    import_masks(run.masks, run.root, out, with_pseudo=True)


def discard(run: Run, out: Path) -> None:
    run.discard("segment")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("command", [decide_and_update, export_anew, export_again, import_anew, discard])
def test_the_same_command_ends_with_the_same_bytes(
    command: Callable[[Run, Path], None],
    masked_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_before: Callable[[int], AbstractContextManager[list[int]]],
) -> None:
    monkeypatch.setattr("tagseg.run.lock.fcntl", None)  # this process lives on, and would keep the lock
    run, out, kept = masked_run, tmp_path / "out", tmp_path / "kept"
    change_settings(run, dataclasses.replace(run.settings(), workers=0), force=True)
    ids = [sample.id for sample in prepare(run).dataset.split("train")]
    if command is decide_and_update:
        for name in ids[:3]:
            record_decision(run, name, Decision("rejected"))
    if command is export_again:
        export(run.root, "voc", out)
    out.mkdir(exist_ok=True)
    shutil.copytree(run.root, kept / "run")
    shutil.copytree(out, kept / "out")

    def begin() -> None:
        for place, old in ((run.root, kept / "run"), (out, kept / "out")):
            shutil.rmtree(place)
            shutil.copytree(old, place)

    with killed_before(10_000) as count:
        command(run, out)
    known = {"left over"}  # the fixture's manifest lists no files
    whole, operations = (tree(run.root), tree(out)), count[0]
    assert whole != (tree(kept / "run"), tree(kept / "out")) and operations > KILLS
    for number in range(KILLS):
        begin()
        with killed_before(number * (operations - 1) // (KILLS - 1)):
            command(run, out)
        assert {one.kind for one in examine(run.root).damage} <= known, f"kill {number}"
        command(run, out)
        assert (tree(run.root), tree(out)) == whole, f"kill {number}"


def test_an_export_without_decisions_to_apply_works_beside_another_command(
    masked_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tagseg.run.lock.PATIENCE_S", 0.0)
    with hold_lock(masked_run.root):
        assert export(masked_run.root, "voc", tmp_path / "out").masks > 0
        record_decision(masked_run, "dog/1", Decision("rejected"))
        with pytest.raises(RunError, match="another tagseg command is writing to it"):
            export(masked_run.root, "voc", tmp_path / "again")
    assert not list((tmp_path / "again").glob("*"))


def test_no_command_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.reliability.scenarios import uncovered

    assert uncovered([name for name in app if not name.startswith("-")]) == []
    assert uncovered(["fit", "a new one"]) == ["a new one"]
