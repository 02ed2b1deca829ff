"""model.int8.onnx: calibrated on training photographs, its loss measured on others, and refused if it is large."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tagseg
from tagseg.export import int8
from tagseg.export.model import export_model
from tagseg.export.onnx import write_onnx
from tagseg.masks.mask_files import write_mask
from tagseg.networks.segmenters import empty_segmenter
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.settings import Settings
from tagseg.training.checkpoint import save_tensors

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def photo(number: int) -> Image.Image:
    patches = np.random.default_rng(number).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(patches.repeat(8, 0).repeat(8, 1))


def run_with(root: Path, train: int, val: int) -> Run:
    """Return a run with a random network and photographs; those for validation have the masks that it predicts."""
    data = root / "photos"
    (data / "images").mkdir(parents=True)
    (data / "classes.txt").write_text("cat\ndog\n")
    rows = ["image,tags,split"]
    for number in range(train + val):
        photo(number).save(data / f"images/{number}.png")
        rows.append(f"{number}.png,{('cat', 'dog')[number % 2]},{'train' if number < train else 'val'}")
    (data / "tags.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    about = {"classes": ["background", "cat", "dog"], "encoder": "test_resnet", "stride": 16}
    about |= {"predict_scales": [1.0], "predict_flip": False, "max_side": 64, "cornered": True}
    network = empty_segmenter("test_resnet", 3, 16)
    torch.nn.init.normal_(network.net.segmentation_head[0].weight, std=3.0)
    values = {"train": {"backbone": "test_resnet", "weights": "random"}, "data": {"min_images": 1}}
    settings = Settings.from_dict({"device": "cpu", **values})
    run = open_run(root / "run", data, settings)
    with run.stage("segment"):
        save_tensors(run.segmenter / "network.safetensors", network.state_dict(), about)
        (run.segmenter / "network.json").write_text(json.dumps(about))
    predictor = tagseg.load(run.root, "cpu", "torch")
    for number in range(train, train + val):
        write_mask(data / f"masks/{number}.png", predictor(photo(number)).mask)
    return run


@pytest.fixture
def same_graph(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs here have the same network: its graph is written once, which takes ten seconds each time."""

    def write(network: nn.Module, metadata: Mapping[str, Any], path: Path) -> float | None:
        if not KEPT:
            KEPT.append(tmp_path_factory.mktemp("graph") / "model.onnx")
            write_onnx(network, metadata, KEPT[0])  # type: ignore[arg-type]
        shutil.copy(KEPT[0], path)
        return 0.0

    monkeypatch.setattr("tagseg.export.model.write_onnx", write)


KEPT: list[Path] = []


@pytest.mark.usefixtures("same_graph")
def test_it_is_calibrated_and_scored_on_true_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "MOST_LOST", 10.0)  # random networks have classes of a few pixels
    run = run_with(tmp_path, 10, 4)
    done = export_model(run.root, tmp_path / "model", int8=True)
    assert done.files == ("README.md", "model.int8.onnx", "model.safetensors", "network.json")
    loss = done.int8_loss
    assert loss is not None and loss.images == 4 and loss.miou is not None and 0.9 < loss.agreement < 1
    assert abs(loss.miou) <= int8.MOST_LOST
    card = (tmp_path / "model/README.md").read_text()
    assert f"model.int8.onnx computes its convolutions in 8-bit integers and is used like model.onnx: {loss}." in card
    session = onnxruntime.InferenceSession(tmp_path / "model/model.int8.onnx")
    for size in ((21, 33), (64, 48), (1, 7)):
        images = np.random.default_rng(0).random((2, 3, *size), np.float32)
        (found,) = session.run(["probabilities"], {"images": images})
        assert found.shape == (2, 3, *size) and np.allclose(found.sum(1), 1, atol=1e-5)
    # The exported folder predicts by its weights, and another export keeps both graphs.
    both = export_model(run.root, tmp_path / "model", onnx=True, int8=True, force=True)
    assert {"model.onnx", "model.int8.onnx"} <= set(both.files)
    sizes = [(tmp_path / "model" / name).stat().st_size for name in ("model.int8.onnx", "model.onnx")]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.usefixtures("same_graph")
def test_without_true_masks_labels_are_compared(tmp_path: Path) -> None:
    run = run_with(tmp_path, 17, 0)
    loss = export_model(run.root, tmp_path / "model", int8=True).int8_loss
    assert loss is not None and loss.images == 8 and loss.miou is None and loss.agreement >= 0.97


@pytest.mark.usefixtures("same_graph")
def test_what_loses_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(tmp_path, 10, 4)
    monkeypatch.setattr(int8, "MOST_LOST", -100.0)
    with pytest.raises(ValueError, match=r"mIoU are lost, expected at most -100; this network needs float32"):
        export_model(run.root, tmp_path / "model", int8=True)
    assert not (tmp_path / "model").exists()


def test_photographs_must_be_there_and_enough(tmp_path: Path) -> None:
    run = run_with(tmp_path, 6, 2)
    with pytest.raises(ValueError, match=r"--int8: needs at least 8 training photographs besides 8 .* found 8; export"):
        export_model(run.root, tmp_path / "model", int8=True)
    (tmp_path / "photos").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="--int8: needs the run's photographs, to calibrate on them"):
        export_model(run.root, tmp_path / "model", int8=True)
    assert not (tmp_path / "model").exists()
