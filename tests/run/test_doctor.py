import json
import time
from pathlib import Path

import msgspec
import pytest

from tagseg.errors import RunError
from tagseg.run.decisions import Decision, record_decision
from tagseg.run.doctor import Checkup, examine, result_checksums
from tagseg.run.folder import Run
from tagseg.run.manifest import StageNote
from tagseg.run.open import open_run
from tagseg.run.stages import OTHERS, OUTPUTS, STAGES, Stage
from tagseg.settings.settings import Settings
from tagseg.system.files import write_atomically


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a finished run, with two files in every folder that a stage writes."""
    (tmp_path / "my data").mkdir()
    run = open_run(tmp_path / "run", tmp_path / "my data", Settings())
    for stage in STAGES:
        with run.stage(stage):
            for output in OUTPUTS[stage]:
                for name in [output] if "." in output else [f"{output}/1.bin", f"{output}/a/2.bin"]:
                    write_atomically(run.root / name, f"{stage} wrote {name}")
    for name, outputs in OTHERS.items():
        for output in outputs:
            write_atomically(run.root / output / "x" if "." not in output else run.root / output, name)
        run.note(name)
    return run


def found(checkup: Checkup) -> set[tuple[str, str, str]]:
    return {(one.part, one.kind, one.file) for one in checkup.damage}


def test_an_intact_run_has_no_damage(run: Run) -> None:
    checkup = examine(run.root)
    assert found(checkup) == set() and checkup.unfinished == {} and checkup.temporary == ()
    assert set(checkup.finished) == {*STAGES, *OTHERS} and checkup.finished["masks"] == 4
    assert checkup.lines()[-1] == "Nothing is damaged." and "masks: 4 files, none damaged" in checkup.lines()


def test_damage_to_any_file_is_found(run: Run) -> None:
    """Flip a bit of each file in turn, then delete it."""
    names = sorted(path.relative_to(run.root).as_posix() for path in run.root.rglob("*") if path.is_file())
    assert len(names) > 20
    for name in set(names) - {"manifest.json"}:
        content = (run.root / name).read_bytes()
        (run.root / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert {(kind, file) for _, kind, file in found(examine(run.root))} in (
            {("changed", name)},
            {("unreadable", name)},
        )
        (run.root / name).unlink()
        assert {(kind, file) for _, kind, file in found(examine(run.root))} == {("missing", name)}
        (run.root / name).write_bytes(content)
    assert found(examine(run.root)) == set()


def test_damaged_files_are_named_with_the_stage_to_repeat(run: Run) -> None:
    (run.masks / "1.bin").write_text("x")
    (run.segmenter / "1.bin").unlink()
    (run.predictions / "stray.png").touch()
    checkup = examine(run.root)
    assert found(checkup) == {
        ("masks", "changed", "masks/1.bin"),
        ("segment", "missing", "segmenter/1.bin"),
        ("evaluate", "left over", "predictions/stray.png"),
    }
    lines = checkup.lines()
    assert lines[lines.index("masks: 4 files, 1 damaged") + 1] == "  changed: masks/1.bin"
    assert f"Delete {run.predictions / 'stray.png'}" in lines
    fit = f"tagseg fit '{run.root.parent / 'my data'}' --out {run.root}"
    assert lines[-1] == f"Repeat masks and all later stages: tagseg masks {run.root} --force, then {fit}"


@pytest.mark.parametrize(
    ("part", "name", "advice"),
    [
        ("calibration", "calibration.md", "tagseg calibrate {} --masks DIR"),
        ("atlas", "atlas.html", "tagseg atlas {} --force"),
        ("full_supervision", "full_supervision/x", "tagseg segment {} --labels truth --force"),
    ],
)
def test_damaged_files_of_other_commands_are_repeated_by_these_commands(
    part: str, name: str, advice: str, run: Run
) -> None:
    (run.root / name).write_text("x")
    assert examine(run.root).lines()[-1] == f"Repeat {part}: {advice.format(run.root)}"


def test_settings_changed_by_hand_are_damage(run: Run) -> None:
    run.settings_file.write_text(Settings(seed=8).to_toml())
    assert found(examine(run.root)) == {("the run itself", "changed", "settings.toml")}
    run.settings_file.write_text("seed = ")
    assert found(examine(run.root)) == {("the run itself", "unreadable", "settings.toml")}


@pytest.mark.parametrize("content", ["{", "[]", '{"data": "x", "stages": {"train": 3}}', '{"data": "x", "stages": []}'])
def test_a_damaged_manifest_is_damage(content: str, run: Run) -> None:
    run.manifest_file.write_text(content)
    checkup = examine(run.root)
    assert found(checkup) == {("the run itself", "unreadable", "manifest.json")}
    assert "Nothing can be checked without" in checkup.lines()[-1]


def test_a_killed_run_is_unfinished_but_not_damaged(run: Run) -> None:
    run.discard("masks")
    write_atomically(run.masks / "1.bin", "made so far")
    (run.masks / ".writing-1.png").touch()
    (run.root / ".lock").touch()
    checkup = examine(run.root)
    assert found(checkup) == set() and checkup.unfinished == {"masks": 1}
    assert checkup.temporary == ("masks/.writing-1.png",)
    lines = checkup.lines()
    assert "masks: not finished, 1 file so far" in lines
    assert lines[-1].startswith("Nothing is damaged. Continue with tagseg fit ")


def test_an_untrusted_manifest_cannot_point_outside_of_the_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    (run.root / "link").symlink_to(tmp_path / "secret")
    names = ["../secret", str(tmp_path / "secret"), "link", "\0"]
    files = run.manifest().stages["report"].files | dict.fromkeys(names, "0")
    run.store(run.manifest().with_stage("report", StageNote(files=files)))
    outcomes = {file: kind for _, kind, file in found(examine(run.root))}
    assert [outcomes[name] for name in names[:3]] == ["missing"] * 3 and outcomes["\0"] in ("missing", "unreadable")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run folder \(no manifest\.json\)"):
        examine(tmp_path)


def test_runs_of_older_versions_need_no_checksum_of_their_settings(run: Run) -> None:
    run.store(msgspec.structs.replace(run.manifest(), settings=None))
    assert "settings" not in json.loads(run.manifest_file.read_text())
    assert found(examine(run.root)) == set()


def test_thousands_of_files_take_seconds(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    run = open_run(tmp_path / "run", tmp_path / "data", Settings())
    with run.stage("masks"):
        run.masks.mkdir()
        for i in range(3000):
            (run.masks / f"{i}.png").write_bytes(b"x" * 4000)
    started = time.process_time()
    assert examine(run.root).finished == {"masks": 3000}
    assert time.process_time() - started < 6


def test_result_checksums_leave_out_times_and_nothing_else(run: Run) -> None:
    page = """<h3>Time</h3><p class="value">{0} s</p><h3>Images</h3><p class="value">{1}</p>
<tr><th scope="row">train</th><td>learn</td><td class="number">{0} s</td><td class="number">{0} MB</td></tr>
<tr><th scope="row">2</th><td class="number">{1}</td><td class="number">{1}</td></tr>
<code>tagseg fit {0}</code>"""
    history = '{{"epoch": 1, "loss": {1}, "seconds": {0}}}\n'

    def write(clock: int, outcome: int) -> dict[str, str]:
        run.report_file.write_text(page.format(clock, outcome))
        (run.network / "history.jsonl").write_text(history.format(clock, outcome))
        run.features.mkdir(exist_ok=True)
        (run.features / "000000.json").write_text(f'{{"changed": {clock}, "sha256": "{outcome}"}}')
        return result_checksums(run)

    first = write(1, 1)
    assert first == write(2, 1) and "manifest.json" not in first
    other = write(1, 2)
    assert {name for name in first if first[name] != other[name]} == {
        "report.html",
        "network/history.jsonl",
        "features/000000.json",
    }
    (run.masks / "1.bin").write_text("x")
    assert {name for name, digest in result_checksums(run).items() if digest != other[name]} == {"masks/1.bin"}


@pytest.mark.parametrize("stage", ["train", "masks"])
def test_discarded_files_are_not_missing(stage: Stage, run: Run) -> None:
    run.discard(stage)
    checkup = examine(run.root)
    assert found(checkup) == set() and ("calibration" in checkup.finished) == (stage == "masks")


def test_a_damaged_database_of_decisions_is_named(run: Run) -> None:
    record_decision(run, "a", Decision("rejected"))
    assert found(examine(run.root)) == set()
    content = run.decisions_file.read_bytes()
    run.decisions_file.write_bytes(content[:100] + b"\x7f" * 300 + content[400:])
    checkup = examine(run.root)
    assert found(checkup) == {("review", "unreadable", "review/decisions.sqlite")}
    assert "review/decisions.sqlite: restore it from a copy, or delete it" in checkup.lines()[-1]
