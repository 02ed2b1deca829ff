"""A small run that version 0.1 made: it opens, its files are read, and the same data gives the same masks again.

The comparisons are exact, pixel by pixel. Masks are made from the recorded maps by integer and float32 arithmetic in a
fixed order, predictions from the recorded weights, and a training with the run's settings (two classes, networks of
0.3 to 1 million weights, one thread) from its seed. PyTorch promises the same floats only on the same processor: where
another one rounds differently, a pixel on a border may fall on the other side. For the two comparisons that go through
a network `DIFFERENT` is the share of pixels that may, so that the test says what it measures and does not fail on
another processor; masks from recorded maps have no tolerance.
"""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tagseg.data.images import read_image, read_mask_file
from tagseg.data.prepare import prepare
from tagseg.data.records import VOID
from tagseg.evaluate.quality import read_quality
from tagseg.evaluate.scores import read_evaluation
from tagseg.masks.make import make_masks
from tagseg.networks import backbones, segmenters
from tagseg.pipeline import fit_until
from tagseg.review.queue import read_queue
from tagseg.run.decisions import decisions
from tagseg.run.doctor import examine
from tagseg.run.folder import Run
from tagseg.run.history import read_history
from tagseg.run.stages import STAGES
from tagseg.segment.load import load

ARCHIVE = Path(__file__).parent / "fixtures" / "run_of_0_1.zip"

DIFFERENT = 0.002
"""Share of pixels that may differ where a network computed them; 0 on the processor that made the fixture."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the run, unpacked, as if it had been made in that folder."""
    folder = tmp_path_factory.mktemp("run_of_0_1")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    changed = {}
    for file in folder.rglob("*"):
        if file.is_file() and b"@FOLDER@" in (content := file.read_bytes()):
            file.write_bytes(content.replace(b"@FOLDER@", str(folder).encode()))
            changed[file.relative_to(folder / "run").as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest = json.loads((folder / "run/manifest.json").read_text(encoding="utf-8"))
    for stage in manifest["stages"].values():
        stage["files"] |= {name: digest for name, digest in changed.items() if name in stage["files"]}
    (folder / "run/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Run(folder / "run")


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    return {file.relative_to(folder).as_posix(): read_mask_file(file) for file in sorted(folder.rglob("*.png"))}


def different(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Return the share of all pixels that differ; the files must be the same."""
    assert ours.keys() == theirs.keys() and len(ours) > 3
    return float(np.mean([np.mean(ours[name] != theirs[name]) for name in ours]))


def test_its_files_are_read(run: Run) -> None:
    manifest = run.manifest()
    assert manifest.tagseg == "0.1.0" and tuple(manifest.stages) == STAGES
    assert run.settings().train.epochs == 30 and run.settings().segment.encoder == "test_resnet"
    prepared = prepare(run)
    assert [sample.split for sample in prepared.dataset.samples] == ["train"] * 9 + ["val"] * 3
    assert set(prepared.sizes.values()) == {(48, 64)}
    evaluation = read_evaluation(run)
    assert evaluation.pseudo_masks is not None and evaluation.pseudo_masks.images == 4
    assert evaluation.segmenter is not None and evaluation.segmenter.miou == 0.22778603484019788
    assert read_quality(run).keys() == {str(number) for number in range(9)}
    assert [len(read_history(folder / "history.jsonl")) for folder in (run.network, run.segmenter)] == [30, 20]
    assert [decision.verdict for decision in decisions(run).values()] == ["rejected"]
    assert len(read_queue(run).items) == 9


def test_the_doctor_finds_it_whole(run: Run) -> None:
    assert examine(run.root).damage == ()


def test_masks_of_its_maps_are_the_same(run: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path / "run")
    copy.root.mkdir()
    for name in ("settings.toml", "manifest.json", "data.json"):
        (copy.root / name).write_bytes((run.root / name).read_bytes())
    (copy.root / "maps").symlink_to(run.maps)
    # Without its review: the decision is younger than the masks.
    assert run.settings().crf.steps
    make_masks(prepare(copy), copy)
    assert different(masks_in(copy.masks), masks_in(run.masks)) == 0
    assert different(masks_in(copy.decided_masks), masks_in(run.decided_masks)) == 0
    assert {int(value) for mask in masks_in(copy.masks).values() for value in np.unique(mask)} == {0, 2, VOID}


def test_its_network_predicts_the_same_masks(run: Run) -> None:
    predictor, images = load(run.root, "cpu"), run.data_root() / "images"
    recorded = masks_in(run.predictions)
    predicted = {name: predictor(read_image(images / name, 1.0)).mask for name in recorded}
    assert different(predicted, recorded) <= DIFFERENT


@pytest.mark.slow
def test_its_data_and_settings_give_the_same_masks_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 0.1 took all backbones for regular, and placed the deep features of DeepLabV3+ as segmentation-models-pytorch
    # does; all else is as it was.
    monkeypatch.setattr(backbones, "measured_shift", lambda *_: 0.0)
    monkeypatch.setattr(segmenters, "_measured_grid", lambda *_: None)
    fit_until(run.data_root(), tmp_path / "again", "evaluate", run.settings())
    again = Run(tmp_path / "again")
    assert different(masks_in(again.predictions), masks_in(run.predictions)) <= DIFFERENT
    assert different(masks_in(again.masks), masks_in(run.masks)) <= DIFFERENT
