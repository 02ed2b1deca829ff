import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tagseg.cli.main import main
from tagseg.data.prepare import prepare
from tagseg.errors import DataError, RunError
from tagseg.evaluate import calibrate as calibrating
from tagseg.evaluate.calibrate import backgrounds, calibrate, calibration_samples, count_pixels, flags, with_crfs
from tagseg.evaluate.evaluate import score_pseudo_masks
from tagseg.evaluate.gain import calibration_images, pooled_miou
from tagseg.masks.map_files import map_file, write_maps
from tagseg.masks.mask_files import write_mask
from tagseg.pipeline import run_stage
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.crf import CrfSettings
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.masks import MaskSettings
from tagseg.settings.settings import Settings
from tagseg.system.changes import is_unsettled
from tagseg.system.files import write_atomically
from tagseg.system.progress import silent

H, W, IMAGES = 24, 40, 9
CHANCE = (0.6, 0.3, 0.65, 0.6, 0.4, 0.7, 0.6, 0.35, 0.65)
"""Map values at the borders of true masks that no single cut fits: 0.6 is better than 0.5 only for some images."""
PLAIN = Settings.from_dict({"workers": 0, "data": {"min_images": 1}, "crf": {"steps": 0}})


def ramps(i: int) -> np.ndarray:
    """Return the map of image i (0..1), which rises from left to right (even i) or right to left, with some noise."""
    ramp = np.linspace(0.02, 0.98, W)[None].repeat(H, 0) ** (1 + i / 20)
    noise = np.random.default_rng(i).normal(0, 0.01, (H, W))
    return (ramp[:, :: 1 - 2 * (i % 2)] + noise).clip(0, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `data`, nine noise images of the classes a and b, and true masks that end where the map is
    0.7 (`cut`), or at the values of `CHANCE` (`chance`)."""
    home = tmp_path_factory.mktemp("calibrate")
    (home / "data").mkdir()
    rows = ["image,tags"]
    for i in range(IMAGES):
        rng = np.random.default_rng(100 + i)
        Image.fromarray(rng.integers(0, 256, (H, W, 3), np.uint8)).save(home / "data" / f"photo {i}.png")
        rows.append(f"photo {i}.png,{'ab'[i % 2]}")
        tag = i % 2 + 1
        write_mask(home / "cut" / f"photo {i}.png", np.where(ramps(i) > 0.7, tag, 0).astype(np.uint8))
        by_chance = np.where(ramps(i) > CHANCE[i], tag, 0).astype(np.uint8)
        write_mask(home / "chance" / f"photo {i}.png", by_chance)
    (home / "data" / "tags.csv").write_text("\n".join(rows) + "\n")
    return home


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    return localised(made, tmp_path / "run", PLAIN)


def localised(made: Path, root: Path, settings: Settings) -> Run:
    """Return a run that has maps but no trained network."""
    run = open_run(root, made / "data", settings)
    prepare(run)
    with run.stage("train"), run.stage("localise"):
        for i in range(IMAGES):
            write_maps(map_file(run, f"photo {i}"), ramps(i)[None], (i % 2 + 1,))
    return run


def with_rule(settings: Settings, **rule: object) -> Settings:
    return dataclasses.replace(settings, masks=dataclasses.replace(settings.masks, **rule))  # type: ignore[arg-type]


def test_the_cut_of_the_true_masks_is_found_and_its_gain_certain(made: Path, run: Run) -> None:
    found = calibrate(run.root, made / "cut")
    best = found.candidates[found.best]
    assert (best.name, best.flags) == ("cut 0.7, no CRF", "--masks.background threshold --masks.threshold 0.7")
    # All folds agree, so the left-out images score like the choice. The present rule, the remainder, cuts at 0.5.
    assert best.folds == IMAGES and found.gain.chosen == pytest.approx(best.miou) and best.miou > 0.9
    assert found.certain and 0.1 < found.gain.low < found.gain.points < found.gain.high
    assert found.gain.present == pytest.approx(found.candidates[0].miou)
    assert found.advice().startswith("Change the settings: --masks.background threshold --masks.threshold 0.7 gains +")
    assert found.recommended == with_rule(PLAIN, background="threshold", threshold=0.7)
    assert found.images == tuple(f"photo {i}" for i in range(IMAGES))
    # 12 rules, and four more CRFs for the only favourite.
    assert len(found.candidates) == 16 and found.candidates[0].flags == ""
    # Only the advice is new: settings, maps and stages have not changed.
    assert run.settings() == PLAIN and tuple(run.manifest().stages) == ("localise", "train")
    assert json.loads(run.calibration_file.read_text()) == found.to_dict()
    assert found.table() in (run.root / "calibration.md").read_text()


def test_candidates_score_like_written_masks(made: Path, run: Run) -> None:
    settings = dataclasses.replace(with_rule(PLAIN, background="power", power=4.0), crf=CrfSettings(steps=2))
    shutil.copytree(made / "cut", run.data_root() / "masks")
    try:
        prepared, samples = prepare(run), calibration_samples(prepare(run), run, made / "cut")
        counts = count_pixels(prepared, run, samples, [PLAIN, settings], silent, "")
        for one in (PLAIN, settings):
            run_stage(run.root, "masks", one, force=True)
            scores = score_pseudo_masks(prepared, run)
            assert scores is not None and scores.images == IMAGES
            assert scores.miou == pytest.approx(float(pooled_miou(counts[one].sum(0))))
    finally:
        shutil.rmtree(run.data_root() / "masks")


def test_settings_that_look_better_by_chance_change_nothing(made: Path, run: Run) -> None:
    found = calibrate(run.root, made / "chance", apply=True)
    assert found.candidates[found.best].miou > found.candidates[0].miou + 0.01
    assert not found.certain and found.recommended == PLAIN == run.settings()
    assert re.search(r"^Keep the present settings: the gain of --masks.*, [+-].* is not certain\.$", found.advice())


def test_good_settings_are_kept(made: Path, tmp_path: Path) -> None:
    run = localised(made, tmp_path / "run", with_rule(PLAIN, background="threshold", threshold=0.7))
    found = calibrate(run.root, made / "cut")
    assert found.best == 0 and found.candidates[0].folds == IMAGES and found.gain.points == 0
    assert found.advice() == "Keep the present settings: none of 16 candidates is better on these images."


def test_a_repeated_calibration_gives_the_same_result(made: Path, run: Run) -> None:
    first = calibrate(run.root, made / "cut")
    assert calibrate(run.root, made / "cut") == first


def test_apply_changes_the_settings_and_discards_masks_and_later(
    made: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with run.stage("masks"):
        write_atomically(run.masks / "x.png", "old")
    with run.stage("segment"):
        write_atomically(run.segmenter / "network.json", "old")
    command = ["calibrate", str(run.root), "--masks", str(made / "cut")]
    with pytest.raises(SystemExit) as leaving:
        main(command)
    assert not leaving.value.code and run.done("segment") and run.settings() == PLAIN
    with pytest.raises(SystemExit) as leaving:
        main([*command, "--apply"])
    text = capsys.readouterr().out
    assert not leaving.value.code and "| cut 0.7, no CRF | `--masks.background threshold" in text
    assert f"Settings changed; masks and later stages discarded. Continue: tagseg fit DATA --out {run.root}" in text
    assert run.settings() == with_rule(PLAIN, background="threshold", threshold=0.7)
    assert run.done("localise") and not run.done("masks") and not run.masks.exists() and not run.segmenter.exists()
    assert run.calibration_file.exists() and calibration_images(run) == {f"photo {i}" for i in range(IMAGES)}
    # The applied settings are now the present ones.
    with pytest.raises(SystemExit):
        main([*command, "--apply"])
    assert "Nothing changed." in capsys.readouterr().out


def test_a_terminal_shows_a_table_that_fits(made: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("tagseg.cli.app.out", Console(file=shown, force_terminal=True, width=80, color_system=None))
    with pytest.raises(SystemExit) as leaving:
        main(["calibrate", str(run.root), "--masks", str(made / "cut")])
    lines = shown.getvalue().splitlines()
    assert not leaving.value.code and max(map(len, lines)) <= 80
    assert any("cut 0.7, no CRF" in line and "│" in line for line in lines)
    assert "Change the settings: --masks.background threshold --masks.threshold 0.7" in " ".join(lines)
    assert "|---|" not in shown.getvalue()


def test_a_killed_calibration_that_counted_is_not_made_again_from_its_own_settings(
    made: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_before: Callable[[int], AbstractContextManager[list[int]]],
) -> None:
    monkeypatch.setattr("tagseg.run.lock.fcntl", None)  # this process lives on, and would keep the lock
    with run.stage("masks"):
        write_atomically(run.masks / "x.png", "old")
    other = Run(Path(shutil.copytree(run.root, tmp_path / "other")))
    with killed_before(10_000) as count:
        found = calibrate(run.root, made / "cut", apply=True)
    with killed_before(count[0] - 3):
        calibrate(other.root, made / "cut", apply=True)
    assert is_unsettled(other.root)
    again = calibrate(other.root, made / "cut", apply=True)
    assert again.table() == found.table() and again.recommended == found.recommended == other.settings()
    assert other.calibration_file.read_bytes() == run.calibration_file.read_bytes() and not other.masks.exists()


def test_calibration_images_are_recorded_permanently(made: Path, run: Run, tmp_path: Path) -> None:
    for numbers in (range(5), range(4, IMAGES)):
        some = tmp_path / f"from {numbers[0]}"
        some.mkdir()
        for i in numbers:
            shutil.copy(made / "cut" / f"photo {i}.png", some)
        assert calibrate(run.root, some).images == tuple(f"photo {i}" for i in numbers)
    run.discard("train")
    assert not run.calibration_file.exists()
    assert calibration_images(run) == {f"photo {i}" for i in range(IMAGES)}


def test_fewer_than_five_masks(made: Path, run: Run, tmp_path: Path) -> None:
    for name in ("photo 0", "photo 1", "photo 2", "photo 3", "other"):
        write_mask(tmp_path / "few" / f"{name}.png", np.zeros((H, W), np.uint8))
    message = r"few: expected at least 5 PNG files named like .* such as photo 0\.png; found 4 among 5 PNG files"
    with pytest.raises(DataError, match=message):
        calibrate(run.root, tmp_path / "few")
    assert not run.calibration_file.exists() and not calibration_images(run)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.zeros((H, W - 1), np.uint8),
            r"photo 8\.png: the mask has 39 x 24 pixels, expected 40",
        ),
        (np.full((H, W), 7, np.uint8), r"photo 8\.png: unknown ids 7 in the mask, expected 0, 255 or 1 \(a\), 2 \(b\)"),
    ],
)
def test_a_wrong_mask_is_named_before_anything_is_tried(
    mask: np.ndarray, message: str, made: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "cut", tmp_path / "wrong")
    write_mask(tmp_path / "wrong" / "photo 8.png", mask)
    monkeypatch.setattr(calibrating, "count_pixels", None)
    with pytest.raises(DataError, match=message):
        calibrate(run.root, tmp_path / "wrong")


def test_folders_without_true_masks_are_named(made: Path, run: Run) -> None:
    shutil.copytree(made / "cut", run.masks)
    with pytest.raises(DataError, match="expected true masks, but masks inside the run folder are tagseg's own"):
        calibrate(run.root, run.masks)
    with pytest.raises(DataError, match="nowhere: not a folder; expected a folder of true masks"):
        calibrate(run.root, made / "nowhere")


def test_calibration_requires_maps(made: Path, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", made / "data", PLAIN)
    with pytest.raises(RunError, match="stage localise has not finished; run `tagseg localise"):
        calibrate(run.root, made / "cut")


def test_a_relative_folder_is_not_looked_for_in_the_data(made: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    (run.data_root() / "cut").mkdir()
    try:
        samples = calibration_samples(prepare(run), run, Path("cut"))
    finally:
        (run.data_root() / "cut").rmdir()
    assert [sample.mask for sample in samples] == [made / "cut" / f"photo {i}.png" for i in range(IMAGES)]


def test_too_many_masks_and_unknown_names_cause_warnings(
    made: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(calibrating, "MOST", 8)
    masks = shutil.copytree(made / "cut", tmp_path / "masks")
    shutil.copy(masks / "photo 0.png", masks / "stranger.png")
    assert len(calibration_samples(prepare(run), run, masks)) == IMAGES
    assert "1 of its 10 PNG files match no training image" in caplog.text
    assert (
        "9 calibration images: 8 are enough; more take longer, and calibration images are never scored again"
        in caplog.text
    )


def test_calibration_masks_use_the_values_of_the_data_set(made: Path, run: Run, tmp_path: Path) -> None:
    prepared = prepare(run)
    dataset = dataclasses.replace(prepared.dataset, mask_ids={8: 1, 12: 2})
    for i in range(5):
        write_mask(tmp_path / "voc" / f"photo {i}.png", np.full((H, W), (8, 12, 255, 0, 12)[i], np.uint8))
    prepared = dataclasses.replace(prepared, dataset=dataset)
    samples = calibration_samples(prepared, run, tmp_path / "voc")
    counts = count_pixels(prepared, run, samples, [PLAIN], silent, "")[PLAIN]
    union = counts[:, 1]
    # All of photo 0 is class a, all of 1 class b; of photo 2, all void, no pixel counts.
    assert union[0, 1] == union[1, 2] == H * W and counts[0, 0, 1] > 0 and counts[1, 0, 2] > 0
    assert not counts[2].any() and union[3, 0] == H * W


@pytest.mark.parametrize(
    ("settings", "rules"),
    [
        (PLAIN, 12),
        (with_rule(PLAIN, background="otsu"), 12),
        (with_rule(PLAIN, background="threshold", threshold=0.55), 13),
        (dataclasses.replace(PLAIN, localise=LocaliseSettings(kind="refined")), 11),
        (dataclasses.replace(PLAIN, maps="oaa"), 11),
    ],
)
def test_background_rules_tried(settings: Settings, rules: int) -> None:
    tried = backgrounds(settings)
    assert tried[0] is settings and len(set(tried)) == len(tried) == rules
    whats = [one.mask_rule().background for one in tried]
    assert ("rest" in whats) == (rules > 11) and {"otsu", "threshold", "power"} <= set(whats)
    # Nothing else changes, and no two candidates make the same masks.
    assert all(dataclasses.replace(one, masks=settings.masks) == settings for one in tried)
    same = {(r.background, r.threshold if r.background == "threshold" else r.power if r.background == "power" else 0)
            for r in (one.mask_rule() for one in tried)}  # fmt: skip
    assert len(same) == rules


def test_crfs_tried() -> None:
    assert [one.crf.steps for one in with_crfs(PLAIN)] == [0, 10, 10, 10, 10]
    default = with_crfs(Settings())
    kinds = [(one.crf.steps, one.crf.bilateral_compat, one.crf.bilateral_srgb) for one in default]
    assert kinds == [(10, 10, 13), (0, 10, 13), (10, 5, 8), (10, 5, 13), (10, 10, 8)]
    own = dataclasses.replace(Settings(), crf=CrfSettings(steps=5, bilateral_compat=7.0))
    assert [one.crf.steps for one in with_crfs(own)] == [5, 0, 5, 5, 5, 5] and with_crfs(own)[0] is own


def test_flags_reproduce_the_settings(made: Path, run: Run) -> None:
    new = with_rule(PLAIN, background="threshold", threshold=0.6)
    new = dataclasses.replace(new, crf=CrfSettings(bilateral_srgb=8.0))
    text = flags(PLAIN, new)
    assert text == (
        "--masks.background threshold --masks.threshold 0.6 --crf.steps 10 --crf.bilateral-srgb 8"
    ) and not flags(new, new)
    with pytest.raises(SystemExit) as leaving:
        main(["masks", str(run.root), "--force", *re.split(" ", text)])
    assert not leaving.value.code and run.settings() == new
    assert new.masks == MaskSettings("threshold", 0.6)
