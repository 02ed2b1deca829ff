"""A run with a random segmentation network, as it is after the segment stage."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tagseg.export.model import ExportedModel, export_model
from tagseg.networks.segmenters import empty_segmenter
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.settings import Settings
from tagseg.training.checkpoint import save_tensors

MakeRun = Callable[..., Run]

SMALL = {
    "device": "cpu",
    "train": {"backbone": "test_resnet", "weights": "random"},
    "segment": {"predict_scales": [1.0, 1.5], "max_side": 64, "crop": 32},
}


def make_run(root: Path, classes: tuple[str, ...] = ("cat", "dog"), settings: Settings | None = None) -> Run:
    """Return a run in `root` on a data folder `my photos`: six training images, two for validation, one unreadable."""
    torch.manual_seed(0)
    (root / "my photos").mkdir(parents=True)
    run = open_run(root / "run", root / "my photos", settings or Settings.from_dict(SMALL))
    about = {"classes": ["background", *classes], "encoder": "test_resnet", "stride": 16}
    about |= {"predict_scales": [1.0, 1.5], "predict_flip": True, "max_side": 64}
    network = empty_segmenter("test_resnet", len(classes) + 1, 16)
    # A large standard deviation, so that masks have more than one value.
    torch.nn.init.normal_(network.net.segmentation_head[0].weight, std=3.0)
    samples = [
        {"id": str(i), "tags": [1 + i % len(classes)], "split": "train" if i < 6 else "val", "image": f"{root}/{i}.jpg"}
        for i in range(8)
    ]
    data = {"layout": "folder", "classes": classes, "notes": [], "broken": [["x.jpg", "damaged"]], "samples": samples}
    run.data_file.write_text(json.dumps(data))
    with run.stage("segment"):
        save_tensors(run.segmenter / "network.safetensors", network.state_dict(), about)
        (run.segmenter / "network.json").write_text(json.dumps(about))
        (run.segmenter / "history.jsonl").write_text('{"loss": 1.0}\n{"loss": 0.5}\n')
    return run


@pytest.fixture
def new_run() -> MakeRun:
    """Return the function that builds runs."""
    return make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a shared run that no test may change."""
    return make_run(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="session")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    """Return the result of exporting `run` with model.onnx."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return export_model(run.root, tmp_path_factory.mktemp("onnx") / "model", onnx=True)
