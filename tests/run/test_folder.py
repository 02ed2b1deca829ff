import dataclasses
import gc
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tagseg import __version__
from tagseg.errors import RunError
from tagseg.run.folder import Run
from tagseg.run.manifest import Manifest
from tagseg.run.open import SECTIONS, open_run
from tagseg.run.open import change_settings as change
from tagseg.run.stages import OUTPUTS, STAGES, Stage
from tagseg.settings.masks import MaskSettings
from tagseg.settings.report import ReportSettings
from tagseg.settings.segment import SegmentSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.system.files import atomic_path, write_atomically

DIFFERENT: dict[Stage, dict[str, Any]] = {
    "train": {"train": {"epochs": 9}},
    "localise": {"localise": {"flip": False}},
    "masks": {"masks": {"power": 3.0}},
    "segment": {"segment": {"epochs": 9}},
    "evaluate": {"report": {"examples": 1}},
}
"""A change of settings for every stage that has settings."""


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def finished(tmp_path: Path, data: Path) -> Run:
    """Return a finished run, with a line of text in every output."""
    run = open_run(tmp_path / "run", data, Settings())
    for stage in STAGES:
        with run.stage(stage):
            for output in OUTPUTS[stage]:
                name = output if "." in output else f"{output}/a/{stage}.bin"
                write_atomically(run.root / name, f"{stage} wrote {name}")
    return run


@pytest.mark.parametrize(("content", "stored"), [("Füchse\n", "Füchse\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_text_and_bytes_are_written_to_new_folders(content: str | bytes, stored: bytes, tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "deep" / "file", content)
    assert (tmp_path / "new/deep/file").read_bytes() == stored
    assert files(tmp_path) == {"new/deep/file"}


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "mask.png"
    target.write_text("old")
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise KeyError
    assert target.read_text() == "old" and files(tmp_path) == {"mask.png"}


def test_a_failure_leaves_no_new_file(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "file", "\ud800")
    assert files(tmp_path) == set()


def test_the_old_file_stays_until_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "mask.png"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and temporary.suffix == ".png" and target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_permissions_are_those_of_a_plainly_opened_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "ours", "")
    (tmp_path / "plain").touch()
    ours, plain = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain"))
    assert ours == plain


def test_a_new_run_holds_settings_and_an_empty_manifest(tmp_path: Path, data: Path) -> None:
    settings = Settings(seed=5, masks=MaskSettings(power=3.0))
    run = open_run(tmp_path / "runs" / "a", data, settings)
    assert files(run.root) == {"settings.toml", "manifest.json"}
    assert run.settings() == settings and run.data_root() == data
    digest = hashlib.sha256(settings.to_toml().encode()).hexdigest()
    assert run.manifest() == Manifest(tagseg=__version__, data=str(data), settings=digest, stages={})
    assert not any(run.done(stage) for stage in STAGES)


def test_an_empty_folder_may_become_a_run(tmp_path: Path, data: Path) -> None:
    (tmp_path / "run").mkdir()
    assert open_run(tmp_path / "run", data, Settings()).manifest().stages == {}


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, data: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for force in (False, True):
        with pytest.raises(RunError, match=r"exists and is not a run folder; choose another --out"):
            open_run(tmp_path, data, Settings(), force)
    assert files(tmp_path) == {"thesis.tex"}


def test_a_file_at_the_path_of_the_run_is_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(RunError, match="run: exists and is not a run folder"):
        open_run(tmp_path / "run", data, Settings())


def test_a_missing_data_folder_leaves_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere: no such data folder"):
        open_run(tmp_path / "run", tmp_path / "nowhere", Settings())
    assert files(tmp_path) == set()


@pytest.mark.parametrize("force", [False, True])
def test_other_data_require_another_run(force: bool, finished: Run, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match=r"this run was made from .*data, not .*other; choose another --out"):
        open_run(finished.root, tmp_path / "other", Settings(), force)
    assert finished.done("report")


def test_the_same_data_may_be_given_by_another_path(finished: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    before = files(finished.root)
    open_run(finished.root, ".", Settings())
    open_run(finished.root, data / ".." / "data", Settings())
    assert files(finished.root) == before and finished.done("report")


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    message = r"not a run folder \(no manifest\.json\); make one with `tagseg fit DATA --out RUN`"
    run = Run(tmp_path)
    for ask in (run.settings, run.data_root, run.manifest, lambda: run.done("train"), lambda: run.require("train")):
        with pytest.raises(RunError, match=message):
            ask()
    with pytest.raises(RunError, match=message):
        change(run, Settings(), force=True)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("content", [b'{"data": ', b"[]", b"{}", b'"text"', b"\xff\xfe"])
def test_a_damaged_manifest_is_refused(content: bytes, finished: Run, data: Path) -> None:
    finished.manifest_file.write_bytes(content)
    for ask in (lambda: finished.done("train"), lambda: open_run(finished.root, data, Settings())):
        with pytest.raises(RunError, match=r"manifest\.json: damaged \(.*start again with another --out"):
            ask()


@pytest.mark.parametrize("stage", DIFFERENT)
def test_without_force_nothing_changes(stage: Stage, finished: Run, data: Path) -> None:
    before = {name: (finished.root / name).read_bytes() for name in files(finished.root)}
    changed = rf"made with other settings \(\w+\.\w+ was .*, now .*\)\. .*--force to run it again from stage {stage}"
    with pytest.raises(RunError, match=changed):
        open_run(finished.root, data, Settings.from_dict(DIFFERENT[stage]))
    assert {name: (finished.root / name).read_bytes() for name in files(finished.root)} == before


@pytest.mark.parametrize("stage", DIFFERENT)
def test_force_deletes_exactly_the_outputs_that_depend_on_the_change(stage: Stage, finished: Run, data: Path) -> None:
    settings = Settings.from_dict(DIFFERENT[stage])
    open_run(finished.root, data, settings, force=True)
    place = STAGES.index(stage)
    kept = {output for earlier in STAGES[:place] for output in OUTPUTS[earlier]}
    assert {path.name for path in finished.root.iterdir()} == {"settings.toml", "manifest.json"} | kept
    assert tuple(finished.manifest().stages) == STAGES[:place]
    assert finished.settings() == settings


def test_several_changes_discard_from_the_earliest_stage_on(finished: Run, data: Path) -> None:
    settings = Settings(masks=MaskSettings(power=3.0), segment=SegmentSettings(epochs=9))
    open_run(finished.root, data, settings, force=True)
    assert tuple(finished.manifest().stages) == ("train", "localise")


def test_device_and_workers_may_change_at_any_time(finished: Run, data: Path) -> None:
    open_run(finished.root, data, Settings(device="cpu", workers=0))
    assert finished.done("report") and finished.settings().workers == 0


def test_settings_of_stages_that_have_not_begun_may_change(tmp_path: Path, data: Path) -> None:
    run = open_run(tmp_path / "run", data, Settings())
    with run.stage("train"):
        write_atomically(run.network / "network.safetensors", "weights")
    open_run(run.root, data, Settings(segment=SegmentSettings(epochs=9)))
    assert run.settings().segment.epochs == 9 and run.done("train")


def test_an_interrupted_stage_counts_as_begun(tmp_path: Path, data: Path) -> None:
    run = open_run(tmp_path / "run", data, Settings())
    write_atomically(run.network / "checkpoint.safetensors", "half")
    with pytest.raises(RunError, match=r"train\.epochs was 0, now 9"):
        open_run(run.root, data, Settings(train=TrainSettings(epochs=9)))


def test_settings_may_change_after_a_training_that_could_not_begin(tmp_path: Path, data: Path) -> None:
    run = open_run(tmp_path / "run", data, Settings())
    write_atomically(run.data_file, "{}")
    open_run(run.root, data, Settings(train=TrainSettings(weights="mine.safetensors")))
    assert run.settings().train.weights == "mine.safetensors" and files(run.root) == {"settings.toml", "manifest.json"}


@pytest.mark.parametrize("force", [False, True])
def test_a_single_stage_does_not_undo_an_earlier_one(force: bool, finished: Run) -> None:
    with pytest.raises(RunError, match=r"which affect stage train, before masks\. .*`tagseg train .*run --force`"):
        change(finished, Settings(train=TrainSettings(epochs=9)), force, "masks")
    assert finished.done("report") and finished.settings() == Settings()


def test_every_setting_that_affects_results_belongs_to_a_stage() -> None:
    known = [section for sections in SECTIONS.values() for section in sections]
    assert sorted([*known, "cache", "device", "workers"]) == sorted(
        field.name for field in dataclasses.fields(Settings)
    )


def test_the_manifest_has_the_checksum_of_every_file(finished: Run) -> None:
    stages = finished.manifest().stages
    assert tuple(stages) == STAGES
    listed = {name: digest for note in stages.values() for name, digest in note.files.items()}
    assert set(listed) == files(finished.root) - {"settings.toml", "manifest.json"}
    for name, digest in listed.items():
        assert digest == hashlib.sha256((finished.root / name).read_bytes()).hexdigest()
    assert set(stages["masks"].files) == {"masks/a/masks.bin", "masks_without_void/a/masks.bin"}


def test_temporary_files_of_a_killed_run_are_not_listed(tmp_path: Path, data: Path) -> None:
    run = open_run(tmp_path / "run", data, Settings())
    with run.stage("localise"):
        write_atomically(run.maps / "a.npz", "maps")
        (run.maps / ".writing-x.npz").write_text("half")
    assert set(run.manifest().stages["localise"].files) == {"maps/a.npz"}


def test_a_stage_deletes_temporary_files_where_it_writes(finished: Run) -> None:
    before = files(finished.root)
    # Temporary files in the run folder itself may come from any stage, and every stage deletes them.
    leftovers = [".writing-4.json", ".writing-5.toml", "maps/.writing-1.npz"]
    leftovers += ["masks/a/.writing-2.png", "masks_without_void/.writing-3.png"]
    for name in leftovers:
        (finished.root / name).write_text("half")
    removed: dict[Stage, int] = {"report": 2, "localise": 3, "masks": 5}
    for stage, gone in removed.items():
        finished.remove_leftovers(stage)
        assert files(finished.root) == before | set(leftovers[gone:])


def test_a_stage_records_its_own_figures(tmp_path: Path, data: Path) -> None:
    run = open_run(tmp_path / "run", data, Settings())
    with run.stage("localise") as figures:
        figures["images"] = 3
    written = json.loads(run.manifest_file.read_text())["stages"]["localise"]
    assert written["images"] == 3 and {"seconds", "peak_mb"} < written.keys()
    assert run.manifest().stages["localise"].images == 3


def test_seconds_are_measured_over_the_block(tmp_path: Path, data: Path) -> None:
    run = open_run(tmp_path / "run", data, Settings())
    with run.stage("masks"):
        time.sleep(0.25)
    assert 0.2 <= run.manifest().stages["masks"].seconds < 5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak")
def test_peak_memory_is_measured_over_the_block(tmp_path: Path, data: Path) -> None:
    run = open_run(tmp_path / "run", data, Settings())
    gc.collect()  # otherwise objects of earlier tests could be freed between the two stages
    with run.stage("train"):
        np.ones(25_000_000).sum()  # 200 MB, freed at once
    with run.stage("localise"):
        pass
    large, small = (run.manifest().stages[stage].peak_mb for stage in ("train", "localise"))
    assert small > 10 and 150 < large - small < 260


def test_a_stage_that_fails_has_not_finished(tmp_path: Path, data: Path) -> None:
    run = open_run(tmp_path / "run", data, Settings())
    with pytest.raises(ValueError, match="broken"), run.stage("train"):
        raise ValueError("broken")
    with pytest.raises(RunError, match=r"stage train has not finished; run `tagseg train .*run` first"):
        run.require("train")


def test_the_manifest_is_plain_json(finished: Run) -> None:
    assert json.loads(finished.manifest_file.read_text()) == msgspec.to_builtins(finished.manifest())


def test_discarding_twice_is_allowed(finished: Run) -> None:
    finished.discard("masks")
    finished.discard("masks")
    assert tuple(finished.manifest().stages) == ("train", "localise")
    assert files(finished.maps) and not finished.masks.exists()


def test_changed_report_settings_discard_the_evaluation_that_chose_the_examples(finished: Run, data: Path) -> None:
    open_run(finished.root, data, Settings(report=ReportSettings(examples=3)), force=True)
    assert not finished.predictions.exists() and not finished.report_file.exists() and finished.segmenter.exists()


def test_calibration_and_atlas_are_discarded_with_the_classification_network_only(finished: Run) -> None:
    names = {"calibration.json", "calibration.md", "atlas.html"}
    for name in names:
        write_atomically(finished.root / name, "figures")
    finished.discard("localise")
    assert names <= files(finished.root)
    finished.discard("train")
    assert files(finished.root) == {"settings.toml", "manifest.json"}


def test_files_of_a_finished_stage_are_compared_with_the_manifest(finished: Run) -> None:
    file = finished.root / "segmenter/a/segment.bin"
    finished.require_unchanged("segment", file, finished.root / "segmenter/not noted")
    file.write_text("another")
    with pytest.raises(
        RunError,
        match=r"segment\.bin: differs from its checksum in manifest\.json: it was damaged or changed after",
    ):
        finished.require_unchanged("segment", file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(
        RunError,
        match=r"segment\.bin: differs from its checksum in manifest\.json: it was damaged or changed after",
    ):
        finished.require_unchanged("segment", file)


def test_links_out_of_the_run_folder_are_refused_where_a_stage_writes(finished: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".writing-0.png").touch()
    link = finished.root / "masks/photos"
    link.symlink_to(outside)
    for stage, refused in (("masks", True), ("segment", False), ("localise", False)):
        if refused:
            with pytest.raises(
                RunError,
                match=r"masks/photos: stage masks writes here, but this is a link to .*outside, outside the run folder",
            ):
                finished.remove_leftovers(stage)  # type: ignore[arg-type]
        else:
            finished.remove_leftovers(stage)  # type: ignore[arg-type]
    link.unlink()
    shutil.rmtree(finished.maps)
    finished.maps.symlink_to(outside)
    with pytest.raises(
        RunError, match=r"run/maps: stage localise writes here, but this is a link to .*outside, outside the run folder"
    ):
        finished.remove_leftovers("localise")
    assert (outside / ".writing-0.png").exists()


def test_links_within_the_run_folder_and_to_it_are_allowed(finished: Run, tmp_path: Path) -> None:
    finished.maps.rename(finished.root / "elsewhere")
    finished.maps.symlink_to("elsewhere")
    (tmp_path / "link").symlink_to(finished.root)
    Run(tmp_path / "link").remove_leftovers("localise")


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "3", '{"data": 3, "stages": {}}', '{"data": "x", "stages": []}', "\xff",
                '{"data": "x", "stages": {"train": 3}}', '{"data": "x", "stages": {"train": {"files": []}}}',
                '{"data": "x", "stages": {}, "calibration_images": 5}']
)  # fmt: skip
def test_a_manifest_of_another_shape_is_damaged(content: str, finished: Run) -> None:
    finished.manifest_file.write_bytes(content.encode("latin-1"))
    with pytest.raises(RunError, match=r"manifest\.json: damaged \("):
        finished.manifest()
