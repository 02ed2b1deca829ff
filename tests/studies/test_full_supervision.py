import dataclasses
import shutil
from pathlib import Path

import pytest

from tagseg.cli.main import main
from tagseg.errors import DataError, RunError
from tagseg.evaluate.evaluate import bound_settings, fits_bound, read_bound
from tagseg.evaluate.scores import read_evaluation
from tagseg.pipeline import fit, fit_until, run_stage
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.segment.load import load
from tagseg.settings.settings import Settings
from tagseg.studies.full_supervision import train_upper_bound
from tagseg.trainer import Trainer
from tagseg.training.checkpoint import load_tensors

STAGES = ["evaluate", "report", "segment"]


def call(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 0


@pytest.fixture(scope="module")
def photos(discs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the discs with two of those that have masks moved to validation."""
    data = shutil.copytree(discs, tmp_path_factory.mktemp("split") / "data")
    lines = (data / "tags.csv").read_text().splitlines()
    rows = [f"{line},{'val' if line[0] in '23' else 'train'}" for line in lines[1:]]
    (data / "tags.csv").write_text("\n".join([f"{lines[0]},split", *rows]) + "\n")
    return data


@pytest.fixture(scope="module")
def quick(tiny: Settings) -> Settings:
    segment = dataclasses.replace(tiny.segment, epochs=2, batch=4, crop=32, max_side=64, predict_scales=(1.0,))
    return dataclasses.replace(tiny, segment=segment)


@pytest.fixture(scope="module")
def finished(photos: Path, quick: Settings, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("bound") / "run"
    fit(photos, root, quick)
    train_upper_bound(root)
    return Run(root)


def test_report_and_figures_say_the_share_of_full_supervision(finished: Run) -> None:
    found = read_evaluation(finished)
    assert found.full_supervision is not None and found.segmenter is not None
    assert found.full_supervision.images == found.segmenter.images == 2 and found.full_supervision.split == "val"
    share = found.segmenter.miou / found.full_supervision.miou
    assert found.share() == pytest.approx(share)
    assert f"reaches {100 * share:.1f} % of full supervision" in found.table()
    page = finished.report_file.read_text(encoding="utf-8")
    assert "Share of full supervision" in page and f"With tags only, it reaches {100 * share:.1f}% of that" in page


def test_it_learns_from_true_masks_with_the_runs_network(finished: Run) -> None:
    bound = finished.full_supervision
    assert sorted(path.stem for path in bound.masks.glob("*.png")) == ["0", "1"]
    own, full = (
        (folder / "network.json").read_text(encoding="utf-8") for folder in (finished.segmenter, bound.segmenter)
    )
    assert own == full
    tensors = [(folder / "network.safetensors").read_bytes() for folder in (finished.segmenter, bound.segmenter)]
    assert tensors[0] != tensors[1]
    assert len(list(bound.predictions.glob("*.png"))) == 2


def test_what_is_done_is_not_done_again(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "train_segmenter", lambda *_: pytest.fail("trained again"))
    again = train_upper_bound(finished.root, finished.settings())
    assert again.scores == read_bound(finished) and again.share == read_evaluation(finished).share()


def test_it_takes_the_runs_own_settings(finished: Run) -> None:
    own = finished.settings()
    other = dataclasses.replace(own, segment=dataclasses.replace(own.segment, epochs=7))
    with pytest.raises(RunError, match="takes the run's own settings"):
        train_upper_bound(finished.root, other)


def test_a_bound_of_other_settings_is_left_out(finished: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(shutil.copytree(finished.root, tmp_path / "run"))
    own = run.settings()
    longer = dataclasses.replace(own, segment=dataclasses.replace(own.segment, epochs=own.segment.epochs + 1))
    run_stage(run.root, "segment", longer, force=True)
    assert read_bound(run) is None and "trained with settings that differ" in caplog.text
    with pytest.raises(RunError, match="--force trains it again"):
        train_upper_bound(run.root)
    assert train_upper_bound(run.root, force=True).scores == read_bound(run)


def test_it_needs_masks_of_validation_images(discs: Path, quick: Settings, tmp_path: Path) -> None:
    open_run(tmp_path / "run", discs, quick)
    with pytest.raises(DataError, match="no validation image has a true mask"):
        train_upper_bound(tmp_path / "run")


def test_it_needs_no_earlier_stage(photos: Path, quick: Settings, tmp_path: Path) -> None:
    open_run(tmp_path / "run", photos, quick)
    call("segment", tmp_path / "run", "--labels", "truth")
    assert read_bound(Run(tmp_path / "run")) is not None and not Run(tmp_path / "run").manifest().stages


def test_a_network_that_starts_at_the_classifier_needs_it(photos: Path, quick: Settings, tmp_path: Path) -> None:
    segment = dataclasses.replace(quick.segment, start="classifier")
    open_run(tmp_path / "run", photos, dataclasses.replace(quick, segment=segment))
    with pytest.raises(RunError, match=r"starts at the classification network, which is not trained yet; run `tagseg"):
        train_upper_bound(tmp_path / "run")
    run_stage(tmp_path / "run", "train")
    train_upper_bound(tmp_path / "run")
    weights = load_tensors(Run(tmp_path / "run").network / "network.safetensors")[0]
    tensors = load_tensors(Run(tmp_path / "run").full_supervision.segmenter / "network.safetensors")[0]
    first = "model.conv1.0.weight"
    near = float((tensors[f"net.encoder.{first}"] - weights[f"backbone.{first}"]).abs().max())
    assert near < 0.05 * float(weights[f"backbone.{first}"].abs().max())


def test_masks_of_another_tool_replace_the_stages_before(photos: Path, quick: Settings, tmp_path: Path) -> None:
    (tmp_path / "quick.toml").write_text(quick.to_toml(), encoding="utf-8")
    root, drawn = tmp_path / "run", shutil.copytree(photos / "masks", tmp_path / "drawn")
    command = ("segment", root, "--labels", drawn, "--settings", tmp_path / "quick.toml")
    call(*command, "--data", photos)
    run = Run(root)
    assert list(run.manifest().stages) == ["segment"] and run.settings().segment.labels == str(drawn.resolve())
    assert load(run.root, "cpu").classes == ("background", "blue", "red")
    assert {path.name for path in run.labels.glob("*.png")} == {"0.png", "1.png"}
    fitted = fit(photos, root)
    assert fitted is not None and sorted(run.manifest().stages) == STAGES
    assert fitted.evaluation.pseudo_masks is None and fitted.evaluation.segmenter is not None
    with pytest.raises(RunError, match="has no stage masks"):
        run_stage(root, "masks")
    with pytest.raises(ValueError, match=r"segment\.rounds must be 1 with segment\.labels, got 2"):
        dataclasses.replace(run.settings().segment, rounds=2)


def test_masks_of_another_tool_that_changed_are_refused_or_learned_from(
    photos: Path, quick: Settings, tmp_path: Path
) -> None:
    root, drawn = tmp_path / "run", shutil.copytree(photos / "masks", tmp_path / "drawn")
    settings = dataclasses.replace(quick, segment=dataclasses.replace(quick.segment, rounds=1, labels=str(drawn)))
    fit_until(photos, root, "segment", settings)
    network = (Run(root).segmenter / "network.safetensors").read_bytes()
    (drawn / "1.png").unlink()
    with pytest.raises(RunError, match=rf"the files in {drawn} have changed since stage segment read them"):
        fit(photos, root)
    fit_until(photos, root, "segment", force=True)
    assert (Run(root).segmenter / "network.safetensors").read_bytes() != network
    assert {path.name for path in Run(root).labels.glob("*.png")} == {"0.png"}


def test_a_bound_fits_as_long_as_all_that_it_depends_on_is_the_same(tmp_path: Path) -> None:
    plain = Settings.from_dict({"train": {"method": "finetuned", "epochs": 5}})
    started = dataclasses.replace(plain, segment=dataclasses.replace(plain.segment, start="classifier"))
    bound = Run(tmp_path)
    for settings in (plain, started):
        longer = dataclasses.replace(settings, train=dataclasses.replace(settings.train, epochs=6))
        text = bound_settings(settings).to_toml()
        bound.settings_file.write_text(text)
        assert fits_bound(bound, settings)
        assert fits_bound(bound, longer) == (settings is plain)
        # As an earlier version wrote it: without settings that are new.
        bound.settings_file.write_text(
            "".join(line for line in text.splitlines(True) if "decoder_channels" not in line)
        )
        assert fits_bound(bound, settings)
        bound.settings_file.write_text("[segment]\nno_such_setting = 1\n")
        assert not fits_bound(bound, settings)
