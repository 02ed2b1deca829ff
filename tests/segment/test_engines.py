"""Engines other than PyTorch: the same labels, no PyTorch in the process, and clear errors."""

import dataclasses
import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from tagseg.errors import RunError, WriteError
from tagseg.networks.grid import Grid
from tagseg.networks.segmenters import empty_segmenter
from tagseg.prediction.predict import predict
from tagseg.segment import engines
from tagseg.segment.engines import EngineCheck, read_note
from tagseg.segment.graph_export import SCORE_TOLERANCE, save_graph
from tagseg.segment.graphs import EXTRAS, engine_version
from tagseg.segment.load import load, open_predictor
from tagseg.segment.read_network import read_predictor
from tagseg.settings.predict import PredictOptions
from tagseg.system.process import cores, processor
from tagseg.system.records import write_record
from tagseg.training.checkpoint import save_tensors

SIZES = [(64, 48), (33, 21), (40, 30), (101, 57), (64, 64), (47, 83), (96, 19), (35, 72), (110, 55), (17, 90)]


def image(width: int, height: int) -> Image.Image:
    patches = np.random.default_rng(width).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(patches.repeat(8, 0).repeat(8, 1)[:height, :width])


needs_openvino = pytest.mark.skipif(
    not engines.installed("openvino"), reason="needs OpenVINO, which is an extra: pip install 'tagseg[openvino]'"
)
ENGINES = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a network with a graph for both engines, checked on a photograph."""
    for name in ("onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=f"needs {name}, which is an extra: pip install 'tagseg[onnx]'")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("network")
    about = {"classes": ["background", "cat", "dog"], "encoder": "test_resnet", "stride": 16}
    about |= {"predict_scales": [0.75, 1.0, 1.5], "predict_flip": True, "max_side": 128}
    about |= {"cornered": True, "shift": 0.25}
    network = empty_segmenter("test_resnet", 3, 16, grid=Grid(True, 0.25))
    network.state_dict()["net.segmentation_head.0.weight"].normal_(std=3.0)
    save_tensors(folder / "network.safetensors", network.state_dict(), about)
    (folder / "network.json").write_text(json.dumps(about))
    image(90, 60).save(folder / "photo.png")
    for engine in filter(engines.installed, EXTRAS):
        predict(folder, folder / "photo.png", folder / engine, PredictOptions(device="cpu", engine=engine))
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_the_labels_are_pytorchs_at_any_size(engine: Any, folder: Path) -> None:
    reference, graph = read_predictor(folder, "cpu"), load(folder, engine=engine)
    assert graph.is_graph and graph.device == "cpu" and not reference.is_graph
    for size in SIZES:
        given = image(*size)
        expected, found = reference.probabilities(given), graph.probabilities(given)
        assert found.dtype == np.float32 and np.allclose(found, expected, atol=2e-4)
        assert (graph(given).mask == reference(given).mask).mean() > 0.999


@pytest.mark.parametrize("engine", ENGINES)
def test_windows_and_threads_change_nothing(engine: Any, folder: Path) -> None:
    given, options = image(300, 180), {"max_side": 0, "window": 96}
    reference = dataclasses.replace(read_predictor(folder, "cpu"), **options)
    graph = dataclasses.replace(load(folder, engine=engine), **options, threads=1)
    one = graph.probabilities(given)
    assert np.allclose(one, reference.probabilities(given), atol=2e-4)
    assert np.array_equal(dataclasses.replace(graph, threads=3).probabilities(given), one)


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_with_pictures_of_many_sizes_never_wait_for_each_other(engine: str, folder: Path) -> None:
    # In a process of its own: threads that wait for ever could not be stopped.
    code = f"""
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from tagseg.segment.load import load
graph = load({str(folder)!r}, engine={engine!r})
images = [np.random.default_rng(i).integers(0, 256, (17 + 7 * i % 90, 19 + 11 * i % 80, 3), np.uint8)
          for i in range(150)]
expected = [graph(image).mask for image in images[:10]]
with ThreadPoolExecutor(6) as pool:
    found = [prediction.mask for prediction in pool.map(graph, images)]
assert all(np.array_equal(one, other) for one, other in zip(expected, found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prediction_imports_no_pytorch(engine: str, folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from tagseg.cli.main import main
photo, out = {str(folder / "photo.png")!r}, {str(tmp_path / "out")!r}
for more in (["--overlays"], ["--overlays", "--crf", "--force"]):
    try:
        main(["predict", {str(folder)!r}, photo, "--out", out, "--engine", {engine!r}, *more])
    except SystemExit as leaving:
        assert not leaving.code, leaving.code
    assert "torch" not in sys.modules
    assert "--crf" in more or "numba" not in sys.modules
assert {engine!r} in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Computed by {engine}: as asked; 100.00 % of the pixels of 1 images have PyTorch's label." in done.stdout
    assert (tmp_path / "out/photo.png").is_file() and (tmp_path / "out/photo.overlay.jpg").is_file()


def test_a_prediction_is_the_same_by_file_and_by_command(folder: Path, tmp_path: Path) -> None:
    graph = load(folder, engine="onnxruntime")
    found = np.asarray(Image.open(folder / "onnxruntime/photo.png"))
    assert np.array_equal(graph(folder / "photo.png").mask, found)


PRECISIONS = """
import sys
import openvino
from tagseg.errors import RunError
from tagseg.segment.load import load

def asked(precision):
    graph = load(sys.argv[1], engine="openvino", precision=precision).network
    return graph.model.get_property("INFERENCE_PRECISION_HINT")

assert asked("fp32") == openvino.Type.f32
if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    assert asked("bf16") == openvino.Type.bf16
else:
    try:
        asked("bf16")
    except RunError as error:
        assert "--precision bf16: this CPU does not compute in bf16" in str(error)
    else:
        raise AssertionError("a network was opened")
"""


@needs_openvino
def test_precision_is_always_asked_for(folder: Path) -> None:
    # In a process of its own: on a virtual machine with AMX one that had opened a network in bf16 was ended by the
    # system (SIGSEGV) when it later started processes that read images.
    done = subprocess.run([sys.executable, "-c", PRECISIONS, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_openvino
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes made by fork")
def test_children_of_a_process_with_openvino_end_well(folder: Path) -> None:
    graphs = [load(folder, engine="openvino") for _ in range(2)]
    masks = [graph(folder / "photo.png").mask for graph in graphs]
    child = os.fork()
    if not child:
        signal.alarm(20)
        graphs.clear()
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(graphs[0](folder / "photo.png").mask, masks[1])


def test_what_cannot_be_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RunError, match=r"onnxruntime computes in fp32 or int8, got --precision bf16; use openvino or torch"
    ):
        load(folder, engine="onnxruntime", precision="bf16")
    with pytest.raises(RunError, match="--precision int8: PyTorch does not compute in it; use --engine onnxruntime"):
        load(folder, engine="torch", precision="int8")
    with pytest.raises(RunError, match=r"--engine onnxruntime computes on the CPU; leave out --device cuda"):
        load(folder, "cuda", engine="onnxruntime")
    monkeypatch.setattr(engines, "installed", lambda engine: False)
    with pytest.raises(RunError, match=r"--engine openvino is not installed: pip install 'tagseg\[openvino\]'"):
        load(folder, engine="openvino")
    opened = predict(folder, folder / "photo.png", folder / "plain", PredictOptions(device="cpu", force=True))
    assert opened.engine == "torch" and "pip install 'tagseg[openvino]'" in opened.why


@needs_openvino
def test_openvino_does_not_compute_in_int8(folder: Path) -> None:
    with pytest.raises(RunError, match="openvino computes in fp32 or bf16, got --precision int8; use onnxruntime"):
        load(folder, engine="openvino", precision="int8")


def test_int8_is_quantised_on_the_first_photographs_and_checked_on_others(folder: Path, tmp_path: Path) -> None:
    copied, photos = tmp_path / "network", tmp_path / "photos"
    shutil.copytree(folder, copied)
    photos.mkdir()
    for number in range(15):
        image(64 + number, 70 - number).save(photos / f"{number}.png")
    asked = PredictOptions(device="cpu", precision="int8", agreement=0.5)
    few = "needs at least 16 photographs, 8 to measure ranges and 8 to check it, found"
    with pytest.raises(RunError, match=f"{few} 0; predict more photographs in int8 first"):
        load(copied, precision="int8")
    with pytest.raises(RunError, match=f"{few} 15;"):
        predict(copied, photos, tmp_path / "out", asked)
    assert not (copied / "engines/passes.int8.onnx").exists()
    for number in range(15, 20):
        image(64 + number, 70 - number).save(photos / f"{number}.png")
    done = predict(copied, photos, tmp_path / "out", asked)
    note = read_note(copied)
    assert note is not None and note.calibrated == 12 and done.engine == "onnxruntime"
    check = next(check for check in note.checks if check.precision == "int8")
    assert check.images == 8 and 0.8 < check.agreement < 1  # 1 would be fp32
    weights = (copied / "engines/passes.int8.onnx").stat().st_size / (copied / "engines/passes.onnx").stat().st_size
    assert weights < 0.7
    # From now on without photographs, and in no process with PyTorch.
    graph, fresh = open_predictor(copied, asked).predictor, image(90, 60)
    assert (graph(fresh).mask == read_predictor(copied, "cpu")(fresh).mask).mean() > 0.8
    with pytest.raises(RunError, match=r"of 8 images get PyTorch's label, expected at least 100 %; use --precision fp"):
        predict(copied, photos, tmp_path / "other", dataclasses.replace(asked, agreement=1.0))
    (copied / "engines/passes.int8.onnx").unlink()
    note = read_note(copied)
    assert note is not None and note.calibrated == 0


def noted(folder: Path, **figures: tuple[float, float]) -> None:
    """Write agreement and images per second of engines as if they had been measured here."""
    note = read_note(folder)
    assert note is not None and note.difference < SCORE_TOLERANCE
    checks = tuple(
        EngineCheck(
            engine=engine,  # type: ignore[arg-type]
            version=engine_version(engine),  # type: ignore[arg-type]
            precision="fp32",
            processor=processor(),
            cores=cores(),
            images=4,
            agreement=agreement,
            images_per_s=speed,
        )
        for engine, (agreement, speed) in figures.items()
    )
    write_record(folder / "engines/engines.json", msgspec.structs.replace(note, checks=checks))


@needs_openvino
def test_auto_takes_the_fastest_that_agrees(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "may_have_gpu", lambda: False)
    copied = tmp_path / "network"
    shutil.copytree(folder, copied)

    def chosen(**options: Any) -> tuple[str, str]:
        asked = PredictOptions(device="auto", force=True, **options)
        done = predict(copied, folder / "photo.png", tmp_path / "out", asked)
        return done.engine, done.why

    noted(copied, torch=(1.0, 2.0), onnxruntime=(0.9999, 5.0), openvino=(0.9995, 6.0))
    agreed = "99.95 % of the pixels of 4 images have PyTorch's label"
    assert chosen() == ("openvino", f"the fastest; {agreed}, 3.0 times as fast as PyTorch")
    assert chosen(agreement=0.9998)[0] == "onnxruntime"
    assert chosen(agreement=1.0)[0] == "torch" and "no engine is faster and agrees" in chosen(agreement=1.0)[1]
    noted(copied, torch=(1.0, 9.0), onnxruntime=(1.0, 5.0), openvino=(1.0, 6.0))
    assert chosen()[0] == "torch"
    # Nothing is known of one of the engines, and one image does not repay the measurement.
    noted(copied, torch=(1.0, 2.0), onnxruntime=(1.0, 5.0))
    assert chosen()[0] == "torch" and "which 1 images do not repay; --engine openvino prepares it" in chosen()[1]
    monkeypatch.setattr(engines, "WORTH_AN_EXPORT", 1)
    assert chosen()[0] in ("torch", "onnxruntime", "openvino")
    note = read_note(copied)
    assert note is not None and {check.engine for check in note.checks} == {"torch", "onnxruntime", "openvino"}


def test_a_graph_of_other_weights_is_not_used(folder: Path, tmp_path: Path) -> None:
    assert read_note(folder) is not None
    copied = tmp_path / "network"
    shutil.copytree(folder, copied)
    with (copied / "network.safetensors").open("ab") as file:
        file.write(b" ")
    assert read_note(copied) is None


def test_a_full_disk_while_a_graph_is_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx, "save", full)
    model = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    with pytest.raises(WriteError, match=r"model\.onnx: cannot be written: the disk is full; free some space"):
        save_graph(model, {}, tmp_path / "model.onnx")
