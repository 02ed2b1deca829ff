import dataclasses
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import prepare
from tagseg.data.records import Dataset, Sample
from tagseg.errors import RunError
from tagseg.evaluate.evaluate import evaluate
from tagseg.evaluate.scores import read_evaluation
from tagseg.masks.map_files import map_file, read_maps
from tagseg.masks.mask_files import mask_file
from tagseg.pipeline import fit, run_stage
from tagseg.run.folder import Run
from tagseg.segment import engines, self_training
from tagseg.segment.engines import Opened
from tagseg.segment.self_training import join_evidence, self_train
from tagseg.settings.masks import MaskSettings
from tagseg.settings.settings import Settings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track

SHARES = st.integers(0, 255)


def slow_join(seen: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The normalised geometric mean, a pixel at a time; maps read by the rule that background is what is left."""
    labels, height, width = seen.shape
    out = np.zeros((labels - 1, height, width))
    for y in range(height):
        for x in range(width):
            own = np.clip(maps[:, y, x] / 255, 1e-4, 1 - 1e-4)
            known = np.array([max(1 - own.sum(), 1e-4), *own])
            known /= known.sum()
            both = np.sqrt(seen[:, y, x] * known)
            out[:, y, x] = both[1:] / max(both.sum(), 1e-6)
    return out


@given(arrays.arrays(np.uint8, (2, 2, 3), elements=SHARES), arrays.arrays(np.uint8, (3, 2, 3), elements=SHARES))
def test_evidence_is_joined_as_a_loop_would(maps: np.ndarray, raw: np.ndarray) -> None:
    seen = ((raw + 1.0) / (raw + 1.0).sum(0)).astype(np.float32)
    found = join_evidence(seen, maps, MaskSettings("rest"))
    assert found.dtype == np.float32 and np.allclose(found, slow_join(seen, maps), atol=1e-4)


def test_the_more_certain_evidence_decides() -> None:
    seen = np.array([[[0.5, 0.99]], [[0.5, 0.01]]], np.float32)
    maps = np.array([[[250, 128]]], np.uint8)
    sure, unsure = join_evidence(seen, maps, MaskSettings("rest"))[0, 0]
    assert sure > 0.85 and unsure < 0.15


@pytest.fixture(scope="module")
def trained(discs: Path, tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of two rounds."""
    settings = dataclasses.replace(tiny, segment=dataclasses.replace(tiny.segment, rounds=2, epochs=1))
    root = tmp_path_factory.mktemp("rounds") / "run"
    fit(discs, root, settings)
    return Run(root)


def test_the_second_round_learns_from_masks_of_the_first(trained: Run) -> None:
    first, prepared = trained.round(1), prepare(trained)
    assert (first.segmenter / "network.safetensors").exists() and first.settings().masks.background == "rest"
    for sample in prepared.dataset.split("train"):
        maps, classes = read_maps(map_file(first, sample.id))
        assert classes == sample.tags and maps.shape == read_maps(map_file(trained, sample.id))[0].shape
        mask = read_mask_file(mask_file(first.decided_masks, sample.id), prepared.sizes[sample.id])
        assert set(np.unique(mask)) <= {0, *sample.tags}
    files = trained.manifest().stages["segment"].files
    assert "self_training/round_1/masks/0.png" in files and "segmenter/network.safetensors" in files


def test_both_kinds_of_masks_are_scored(trained: Run) -> None:
    found = read_evaluation(trained)
    assert found.self_trained is not None and found.pseudo_masks is not None
    assert found.self_trained.images == found.pseudo_masks.images == 4
    assert "pseudo-masks after self-training (4 train images)" in found.table()
    assert evaluate(prepare(trained), trained) == found


def test_finished_rounds_are_kept(trained: Run) -> None:
    first = trained.round(1)
    lost, kept = map_file(first, "3"), map_file(first, "4")
    before, time = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    mask_file(first.masks, "3").unlink()
    asked: list[Path] = []

    def train(dataset: Dataset, masks: Path, settings: Settings, folder: Path, track: Track) -> None:
        asked.append(masks)

    self_train(prepare(trained), trained, train_segmenter=train)
    assert asked == [first.masks]  # the first round's network was there
    assert lost.read_bytes() == before and kept.stat().st_mtime_ns == time and mask_file(first.masks, "3").exists()


def test_another_engine_predicts_the_training_images_alike(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'tagseg[onnx]'")
    monkeypatch.setattr(engines, "may_have_gpu", lambda: False)
    monkeypatch.setattr(engines, "WORTH_AN_EXPORT", 0)
    caplog.set_level("INFO", "tagseg.segment.self_training")
    prepared, first = prepare(trained), trained.round(1)
    by_torch = {sample.id: read_maps(map_file(first, sample.id)) for sample in prepared.dataset.split("train")}
    for asked, engine in (("auto", "onnxruntime"), ("torch", "torch")):
        copied = tmp_path / asked
        shutil.copytree(trained.root, copied)
        run = Run(copied)
        settings = run.settings()
        chosen = dataclasses.replace(settings.segment, teacher_engine=asked)
        write_atomically(run.settings_file, dataclasses.replace(settings, segment=chosen).to_toml())
        shutil.rmtree(run.round(1).maps)
        caplog.clear()
        self_train(prepare(run), run, train_segmenter=lambda *_: None)
        assert f"training images are predicted by {engine} (" in caplog.text
        assert not (run.round(1).segmenter / "engines").exists()
        for name, (maps, classes) in by_torch.items():
            found, kept = read_maps(map_file(run.round(1), name))
            assert kept == classes and np.abs(found.astype(int) - maps.astype(int)).max(initial=0) <= 1, name
    # Where all maps are there, the network is not even read.
    monkeypatch.setattr(self_training, "_teacher", lambda *_: pytest.fail("there is nothing to predict"))
    self_train(prepare(run), run, train_segmenter=lambda *_: None)


@pytest.mark.parametrize(
    ("views", "scales", "flip", "images"), [("one", 3, True, 3), ("all", 3, True, 20), ("all", 1, False, 3)]
)
def test_looking_once_repays_an_engine_later(
    views: Literal["one", "all"], scales: int, flip: bool, images: int, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def opened(*given: object) -> Opened:
        counted.append(given[-1])  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(self_training, "open_engine", opened)
    segment = dataclasses.replace(tiny.segment, teacher_views=views, predict_scales=(1.0,) * scales, predict_flip=flip)
    samples = [Sample(str(number), Path("none.jpg"), (1,)) for number in range(20)]
    with pytest.raises(KeyboardInterrupt):
        self_training._teacher(Path("none"), dataclasses.replace(tiny, segment=segment), samples)
    assert counted == [images]


def test_other_rounds_train_again(trained: Run) -> None:
    settings = trained.settings()
    once = dataclasses.replace(settings, segment=dataclasses.replace(settings.segment, rounds=1))
    with pytest.raises(RunError, match=r"segment\.rounds was 2, now 1"):
        run_stage(trained.root, "segment", once)
    run_stage(trained.root, "segment", once, force=True)
    assert not trained.round(1).root.exists() and trained.done("segment")
