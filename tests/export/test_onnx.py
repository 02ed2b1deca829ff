import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tagseg
from tagseg.export.model import ExportedModel, export_model
from tagseg.export.onnx import CHECKED_SIZES, write_onnx, write_openvino
from tagseg.masks.palette import class_colours
from tagseg.networks.segmenters import NetworkName, Segmenter, empty_segmenter
from tagseg.run.folder import Run
from tagseg.segment.graph_export import MeanPool, Sides, probe_sides

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Toy(Segmenter):
    """A small network that pools its features and accepts sides of 8 n + 1 pixels."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        nn.Module.__init__(self)
        self.net = nn.Conv2d(3, 4, 3, stride=8, padding=1)
        self.pool = pool
        self.head = nn.Conv2d(4, 3, 1)
        self.frozen_norms = False
        nn.init.normal_(self.head.weight, std=10.0)

    def fitting_size(self, height: float, width: float) -> tuple[int, int]:
        h, w = (max(round((side - 1) / 8), 3) * 8 + 1 for side in (height, width))
        return h, w

    def forward(self, images: Tensor) -> Tensor:
        assert all(side % 8 == 1 for side in images.shape[2:])
        features = self.net(images)
        pooled = F.interpolate(self.pool(features), features.shape[2:], mode="bilinear", align_corners=False)
        return F.interpolate(self.head(features + pooled), images.shape[2:], mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def session(exported: ExportedModel) -> Any:
    return onnxruntime.InferenceSession(exported.folder / "model.onnx")


def expected(network: Segmenter, images: Tensor) -> Tensor:
    size = images.shape[2:]
    with torch.no_grad():
        fitting = F.interpolate(images, network.fitting_size(*map(float, size)), mode="bilinear", align_corners=False)
        return F.interpolate(network(fitting), size, mode="bilinear", align_corners=False).softmax(1)


@pytest.mark.parametrize(
    "shape", [(1, 32, 32), (2, 71, 90), (3, 64, 48), (1, 40, 120), (1, 200, 33), (5, 7, 5), (1, 1, 1), (1, 24, 8)]
)
def test_onnx_runtime_computes_what_pytorch_does(shape: tuple[int, int, int], run: Run, session: Any) -> None:
    batch, height, width = shape
    images = torch.rand(batch, 3, height, width)
    (seen,) = session.run(["probabilities"], {"images": images.numpy()})
    wanted = expected(tagseg.load(run.root, "cpu").network, images)
    assert seen.dtype == np.float32 and seen.shape == wanted.shape == (batch, 3, height, width)
    assert np.abs(seen - wanted.numpy()).max() < 1e-4 and np.ptp(seen) > (0.1 if height > 1 else 0.01)
    assert np.allclose(seen.sum(1), 1, atol=1e-5)


def test_the_export_returns_the_difference(exported: ExportedModel) -> None:
    assert "model.onnx" in exported.files and exported.onnx_difference is not None
    assert 0 < exported.onnx_difference < 1e-4


def test_openvino_is_asked_for_before_anything_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tagseg.export.model.installed", lambda engine: False)
    with pytest.raises(
        ValueError, match=r"--openvino: requires openvino; install with pip install 'tagseg\[openvino\]'"
    ):
        export_model(run.root, tmp_path / "out", openvino=True)
    assert not (tmp_path / "out").exists()


def test_openvino_computes_what_pytorch_does(exported: ExportedModel, run: Run, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="is an extra: pip install 'tagseg[openvino]'")
    file = tmp_path / "model.onnx"
    file.write_bytes((exported.folder / "model.onnx").read_bytes())
    network = tagseg.load(run.root, "cpu").network
    assert 0 < write_openvino(network, file) < 1e-4
    assert file.with_suffix(".xml").is_file()
    parameters = sum(tensor.numel() for tensor in network.parameters())
    # Batch norms are folded into the convolutions, so it is a little less than 4 bytes each; half precision takes 2.
    assert file.with_suffix(".bin").stat().st_size > 3 * parameters
    core = openvino.Core()
    computed = core.compile_model(file.with_suffix(".xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in ((21, 33), (64, 48), (1, 7)):
        images = torch.rand(2, 3, *size)
        found = computed({"images": images.numpy()})[0]
        assert np.abs(found - expected(network, images).numpy()).max() < 1e-4


def test_the_sizes_of_the_check_are_odd_too() -> None:
    sizes = {(int(32 * height), int(32 * width)) for height, width in CHECKED_SIZES}
    assert len(sizes) == 10 and (21, 33) in sizes


def test_inputs_and_outputs_have_names_and_free_sizes(session: Any) -> None:
    ((given,), (made,)) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(float)", ["batch", 3, "height", "width"])
    assert (made.name, made.type, made.shape) == ("probabilities", "tensor(float)", ["batch", 3, "height", "width"])


def test_the_files_metadata_names_the_classes(session: Any, run: Run) -> None:
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    network = tagseg.load(run.root, "cpu").network
    assert about["classes"] == ["background", "cat", "dog"] and about["max_side"] == 64
    assert about["palette"] == [list(colour) for colour in class_colours(2)]
    assert about["normalisation"]["inside"] is True
    assert torch.equal(torch.tensor(about["normalisation"]["mean"]), network.mean.flatten())
    assert torch.equal(torch.tensor(about["normalisation"]["std"]), network.std.flatten())
    assert about["licence"]["text"] == "none (training started from random weights)"
    assert about["tagseg"] == tagseg.__version__


def test_no_path_of_this_machine_is_in_the_file(exported: ExportedModel, run: Run) -> None:
    content = (exported.folder / "model.onnx").read_bytes()
    for path in (Path(tagseg.__file__).parent, Path(torch.__file__).parent, run.root, exported.folder, Path.home()):
        assert str(path).encode() not in content or str(path) == "/"
    assert b".py" not in content


def test_normalisation_is_inside(session: Any, run: Run) -> None:
    network = tagseg.load(run.root, "cpu").network
    mean = network.mean.expand(1, 3, 32, 32)
    (seen,) = session.run(None, {"images": mean.numpy()})
    with torch.no_grad():
        bare = network.net(torch.zeros(1, 3, 32, 32)).softmax(1)
    assert np.abs(seen - bare.numpy()).max() < 1e-4


@given(st.integers(2, 40), st.integers(0, 39), st.integers(1, 4), st.integers(1, 3000))
def test_sides_are_rounded_as_python_rounds(step: int, offset: int, lowest: int, side: int) -> None:
    offset %= step
    assert Sides(step, offset, lowest).nearest(side) == max(round((side - offset) / step), lowest) * step + offset


def test_the_rule_of_a_network_is_found() -> None:
    network = empty_segmenter("test_resnet", 3, 16)
    sides = probe_sides(network)
    assert sides == Sides(16, 0, 2)
    for side in range(1, 700):
        assert network.fitting_size(float(side), side + 9.0) == (sides.nearest(side), sides.nearest(side + 9))
    assert probe_sides(Toy(nn.Identity())) == Sides(8, 1, 3)


@pytest.mark.parametrize("parts", [(1, 1), (2, 3), (6, 6), (5, 1)])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 9), (12, 6)])
def test_mean_pool_is_adaptive_average_pooling(parts: tuple[int, int], size: tuple[int, int]) -> None:
    features = torch.rand(2, 3, *size)
    assert torch.allclose(MeanPool(parts)(features), F.adaptive_avg_pool2d(features, parts), atol=1e-6)
    # By hand: two parts of three cells share the middle one.
    assert MeanPool((1, 2))(torch.tensor([[[[0.0, 2.0, 6.0]]]])).tolist() == [[[[1.0, 4.0]]]]


def test_pools_of_several_parts_and_other_sides_are_written(tmp_path: Path) -> None:
    network = Toy(nn.AdaptiveAvgPool2d((2, 3))).eval()
    difference = write_onnx(network, {"classes": ["ä"]}, tmp_path / "a.onnx")
    assert difference is not None and difference < 1e-4
    assert isinstance(network.pool, nn.AdaptiveAvgPool2d)  # the network itself is unchanged
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert session.get_modelmeta().custom_metadata_map["classes"] == '["ä"]'
    images = torch.rand(1, 3, 93, 130)
    (seen,) = session.run(None, {"images": images.numpy()})
    assert np.abs(seen - expected(network, images).numpy()).max() < 1e-4


def pooled_for_one_size(features: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(features, 3)


def shifted_when_it_runs(features: Tensor) -> Tensor:
    return features if torch.compiler.is_exporting() else features + 1


def asks_the_features(features: Tensor) -> Tensor:
    return features * 2 if features.sum() > 0 else features


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (pooled_for_one_size, r"ONNX Runtime cannot run the exported file"),
        (shifted_when_it_runs, r"the probabilities of ONNX Runtime and PyTorch differ by \S+, expected at most 0\.001"),
        (asks_the_features, r"PyTorch's exporter cannot write this network"),
    ],
)
def test_the_error_for_a_network_that_cannot_be_written_says_what_to_do(
    pool: Callable[[Tensor], Tensor], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"--onnx: {message}.*Export without --onnx.*--segment\.encoder"):
        write_onnx(Toy(pool).eval(), {}, tmp_path / "a.onnx")


def test_a_failed_onnx_file_leaves_no_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tagseg.export.onnx.MAX_GRAPH_BYTES", 1000)
    with pytest.raises(ValueError, match=r"--onnx: the weights take 0\.0 GB, but an ONNX file holds at most 2 GB"):
        export_model(run.root, tmp_path / "model", onnx=True)
    assert list(tmp_path.iterdir()) == []


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))


def test_a_missing_exporter_is_named_before_anything_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "onnxscript")
    with pytest.raises(ValueError, match=r"--onnx: requires onnxscript; install with pip install 'tagseg\[onnx\]'"):
        export_model(run.root, tmp_path / "model", onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_runtime_nothing_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "onnxruntime")
    assert write_onnx(Toy(nn.Identity()).eval(), {}, tmp_path / "a.onnx") is None
    assert (tmp_path / "a.onnx").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "encoder", "stride"),
    [("deeplabv2", "test_resnet", 8), ("deeplabv2", "test_vit", 16), ("upernet", "test_resnet", 16)],
)
def test_every_network_is_exported(name: NetworkName, encoder: str, stride: int, tmp_path: Path) -> None:
    network = empty_segmenter(encoder, 3, stride, name).eval()
    difference = write_onnx(network, {"classes": ["background", "a", "b"]}, tmp_path / "model.onnx")
    assert difference is not None and difference < 1e-4
    images = torch.rand(2, 3, 75, 101)
    (seen,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": images.numpy()})
    assert seen.shape == (2, 3, 75, 101) and np.abs(seen - expected(network, images).numpy()).max() < 1e-4
