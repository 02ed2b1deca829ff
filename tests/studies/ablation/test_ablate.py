import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from PIL import Image

from tagseg.errors import DataError, RunError
from tagseg.pipeline import fit_until
from tagseg.run.folder import Run
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.masks import MaskSettings
from tagseg.settings.settings import Settings
from tagseg.studies.ablation.ablate import ablate
from tagseg.studies.ablation.arms import ARMS
from tagseg.studies.ablation.scores import SCORE_FILE
from tagseg.studies.ablation.table import Ablation

T = TypeVar("T")


class Stopped(Exception):
    """Stands for a process that is killed."""


@pytest.fixture(scope="module")
def original(discs: Path, tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    """Return the ablation of two arms with seeds 0 and 1."""
    return ablate(discs, tmp_path_factory.mktemp("ablate") / "out", tiny, seeds=2, arms=("both", "cam"))


@pytest.fixture
def out(original: Ablation, tmp_path: Path) -> Path:
    """Return a copy of the finished ablation's folder that a test may change."""
    return shutil.copytree(original.folder, tmp_path / "out")


def times(folder: Path, pattern: str) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.glob(pattern)}


def table(folder: Path) -> str:
    return (folder / "ablation.md").read_text(encoding="utf-8")


def test_each_arm_and_seed_is_a_run_and_the_table_holds_them_all(original: Ablation) -> None:
    names = {path.name for path in original.folder.iterdir()}
    tables = {"ablation.json", "ablation.md", "ablation.svg", "settings.toml"}
    assert names == {"cam_0", "cam_1", "both_0", "both_1"} | tables
    assert [(score.arm, score.seed) for score in original.scores] == [("cam", 0), ("cam", 1), ("both", 0), ("both", 1)]
    assert original.missing == () and table(original.folder) == "# Ablation\n\n" + original.table()
    kept = json.loads((original.folder / "ablation.json").read_text())
    assert kept == original.to_dict() and not kept["partial"]
    gain = [100 * (original.of("both")[i].miou - original.of("cam")[i].miou) for i in range(2)]
    assert kept["arms"]["both"]["gain"]["values"] == [round(value, 2) for value in gain]


def test_runs_differ_only_in_switches_and_seed(original: Ablation, tiny: Settings) -> None:
    for name in ("cam_0", "cam_1", "both_0", "both_1"):
        found, on = Run(original.folder / name).settings(), name.startswith("both")
        assert (found.rca.contrast, found.rca.aggregation, found.seed) == (on, on, int(name[-1]))
        rca = dataclasses.replace(found.rca, contrast=tiny.rca.contrast, aggregation=tiny.rca.aggregation)
        assert dataclasses.replace(found, seed=tiny.seed, rca=rca) == tiny


def test_a_run_of_the_ablation_equals_one_of_fit(original: Ablation, discs: Path, tmp_path: Path) -> None:
    fit_until(discs, tmp_path / "run", "train", Run(original.folder / "both_1").settings())
    alone, within = (
        folder / "network" / "network.safetensors" for folder in (tmp_path / "run", original.folder / "both_1")
    )
    assert alone.read_bytes() == within.read_bytes()


def test_a_second_call_trains_nothing_and_returns_the_same(out: Path, original: Ablation, discs: Path) -> None:
    before = times(out, "*_*/**/*.safetensors") | times(out, f"*_*/{SCORE_FILE}") | times(out, "*_*/maps/*")
    again = ablate(discs, out, None, seeds=2, arms=("cam", "both"))
    assert dataclasses.replace(again, folder=original.folder) == original
    assert before == times(out, "*_*/**/*.safetensors") | times(out, f"*_*/{SCORE_FILE}") | times(out, "*_*/maps/*")


def test_an_interrupted_ablation_shows_finished_runs_and_continues(
    original: Ablation, discs: Path, tiny: Settings, tmp_path: Path
) -> None:
    titles: list[str] = []

    def stopping(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        titles.append(title)
        for item in items:
            if title == "3/4 cam_1: train, epoch 2/2":
                raise Stopped
            yield item

    with pytest.raises(Stopped):
        ablate(discs, tmp_path / "out", tiny, 2, stopping, ("cam", "both"))
    # All arms of a seed come before the next seed, so that two finished runs already compare.
    partial = table(tmp_path / "out")
    assert "**Partial table:** 2 runs are finished, missing: cam_1, both_1." in partial
    assert "| both | " in partial and json.loads((tmp_path / "out/ablation.json").read_text())["partial"]
    assert "Partial: 2 of 4 runs" in (tmp_path / "out/ablation.svg").read_text()
    assert {title.split()[0] for title in titles if ":" in title} == {"1/4", "2/4", "3/4"}
    assert "2/4 both_0: score" in titles
    started = times(tmp_path / "out", "*_0/network/*")
    finished = ablate(discs, tmp_path / "out", tiny, 2, arms=("cam", "both"))
    assert finished.scores == original.scores and table(tmp_path / "out") == table(original.folder)
    assert started == times(tmp_path / "out", "*_0/network/*")
    history = (tmp_path / "out/cam_1/network/history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in history] == [1, 2]


def test_arms_may_be_shared_among_processes(original: Ablation, discs: Path, tiny: Settings, tmp_path: Path) -> None:
    first = ablate(discs, tmp_path / "out", tiny, 2, arms=("both",))
    assert first.missing == () and first.arms == ("both",) and first.gain("both").values == {}
    second = ablate(discs, tmp_path / "out", tiny, 2, arms=("cam",))
    assert dataclasses.replace(second, folder=original.folder) == original
    assert table(tmp_path / "out") == table(original.folder)


def test_a_run_another_process_finishes_meanwhile_is_not_lost(
    original: Ablation, out: Path, discs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (out / "both_1" / SCORE_FILE).read_bytes()
    (out / "both_1" / SCORE_FILE).unlink()
    save = Ablation.save

    def late(found: Ablation) -> Path:
        path = save(found)
        (out / "both_1" / SCORE_FILE).write_bytes(kept)
        return path

    monkeypatch.setattr(Ablation, "save", late)
    found = ablate(discs, out, None, 2, arms=("cam",))
    assert found.missing == () and table(out) == table(original.folder)


def test_one_seed_has_no_deviation(out: Path, discs: Path, original: Ablation) -> None:
    for name in ("cam_1", "both_1"):
        shutil.rmtree(out / name)
    found = ablate(discs, out, None, seeds=1, arms=("cam", "both"))
    row = next(line for line in table(out).splitlines() if line.startswith("| both |"))
    assert row.split(" | ")[1:3] == [f"{100 * found.scores[1].miou:.1f} ± -", found.gain("both").text("+")]
    assert row.count("± -") == 2 and "± nan" not in table(out)
    assert json.loads((out / "ablation.json").read_text())["arms"]["both"]["std"] is None


def test_more_seeds_join_the_table(out: Path, discs: Path, original: Ablation) -> None:
    settings = dataclasses.replace(Settings.from_toml(out / "settings.toml"), seed=2)
    found = ablate(discs, out, settings, seeds=1, arms=("cam", "both"))
    assert [score.seed for score in found.of("both")] == [0, 1, 2] and found.missing == ()
    assert found.of("cam")[:2] == original.of("cam")


def test_other_settings_need_force_and_are_scored_again(out: Path, discs: Path, original: Ablation) -> None:
    settings = Settings.from_toml(out / "settings.toml")
    networks, before = times(out, "*_*/network/*"), table(out)
    other = dataclasses.replace(settings, localise=LocaliseSettings(scales=(0.75,), max_side=64))
    with pytest.raises(
        RunError, match=r"cam_0: made with other settings \(localise\.scales was \[1\.0\], now \[0\.75\]"
    ):
        ablate(discs, out, other, 2, arms=("cam", "both"))
    assert table(out) == before
    found = ablate(discs, out, other, 2, arms=("cam", "both"), force=True)
    assert found.missing == () and found.scores != original.scores and times(out, "*_*/network/*") == networks
    # No output in the run folder depends on the mask rule: it may change without force, and gives another table.
    rule = dataclasses.replace(other, masks=MaskSettings(background="power"))
    assert {score.rule for score in ablate(discs, out, rule, 2, arms=("cam", "both")).scores} == {
        "coarse map, background power 2, dense CRF", "posterior map, background power 2, dense CRF",
    }  # fmt: skip


def test_without_true_masks_nothing_starts(discs: Path, tiny: Settings, tmp_path: Path) -> None:
    data = shutil.copytree(discs, tmp_path / "data")
    shutil.rmtree(data / "masks")
    with pytest.raises(DataError, match=r"data: no training image has a true mask \(read as layout .*--data\.masks"):
        ablate(data, tmp_path / "out", tiny)
    assert not (tmp_path / "out").exists()


def test_a_wrong_true_mask_is_found_before_the_training(discs: Path, tiny: Settings, tmp_path: Path) -> None:
    data = shutil.copytree(discs, tmp_path / "data")
    Image.new("L", (64, 47)).save(data / "masks" / "3.png")
    with pytest.raises(DataError, match=r"3\.png: the mask has"):
        ablate(data, tmp_path / "out", tiny)
    assert not list((tmp_path / "out").glob("*/network"))


def test_wrong_arguments_are_named(discs: Path, tiny: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="--seeds must be 1 or more, got 0"):
        ablate(discs, out, tiny, seeds=0)
    for arms, got in (((), "none"), (("cam", "none"), "cam,none"), (("",), "none")):
        with pytest.raises(ValueError, match=f"--arms must be some of {','.join(ARMS)}, got {got}"):
            ablate(discs, out, tiny, arms=arms)
    posterior = dataclasses.replace(tiny, localise=LocaliseSettings(kind="posterior"))
    with pytest.raises(ValueError, match=r"arm cam: setting localise\.kind"):
        ablate(discs, out, posterior)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        ablate(tmp_path / "nowhere", out, tiny)
    assert not out.exists()


def test_a_foreign_folder_is_left_alone(out: Path, discs: Path, tiny: Settings, tmp_path: Path) -> None:
    before = (discs / "tags.csv").read_bytes(), sorted(path.name for path in discs.iterdir())
    for folder in (discs, out / "cam_0"):
        with pytest.raises(RunError, match="exists and is not an ablation's folder; choose another --out"):
            ablate(discs, folder, tiny)
    assert before == ((discs / "tags.csv").read_bytes(), sorted(path.name for path in discs.iterdir()))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file: exists and is not a folder"):
        ablate(discs, tmp_path / "file", tiny)


def test_a_folder_that_holds_only_runs_becomes_an_ablation(out: Path, discs: Path, original: Ablation) -> None:
    for path in out.glob("ablation.*"):
        path.unlink()
    found = ablate(discs, out, None, 2, arms=("cam", "both"))
    assert found.scores == original.scores and table(out) == table(original.folder)
