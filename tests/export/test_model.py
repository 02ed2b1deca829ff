import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from safetensors import safe_open

import tagseg
from tagseg.errors import RunError, WriteError
from tagseg.export.model import export_model, without_folders
from tagseg.networks.segmenters import NetworkName, empty_segmenter
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.settings import Settings
from tagseg.system.records import read_json
from tagseg.training.checkpoint import load_tensors, save_tensors

MakeRun = Callable[..., Run]
FILES = ("README.md", "config.json", "model.safetensors", "network.json")

ELSEWHERE = """
import sys, tagseg, torch
from PIL import Image
torch.set_num_threads(1)
predictor = tagseg.load(sys.argv[1], "cpu")
torch.manual_seed(5)
with torch.no_grad():
    probabilities = predictor.network(torch.rand(1, 3, 64, 48)).softmax(1)
with open(sys.argv[3], "wb") as file:
    file.write(predictor(sys.argv[2]).mask.tobytes() + probabilities.contiguous().numpy().tobytes())
"""


def listing(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir()))


def outputs(folder: Path, image: Path) -> bytes:
    """Return what `ELSEWHERE` writes."""
    predictor = tagseg.load(folder, "cpu")
    torch.manual_seed(5)
    with torch.no_grad():
        probabilities = predictor.network(torch.rand(1, 3, 64, 48)).softmax(1)
    mask = predictor(image).mask
    assert len(np.unique(mask)) > 1
    return b"".join((mask.tobytes(), probabilities.contiguous().numpy().tobytes()))


def test_another_process_restores_the_same_network(run: Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    image, out, seen = tmp_path / "a.png", tmp_path / "model", tmp_path / "seen"
    Image.fromarray(pixels).save(image)
    exported = export_model(run.root, out)
    assert exported.folder == out and exported.files == FILES == listing(out) and exported.onnx_difference is None
    expected = outputs(run.root, image)
    assert outputs(run.segmenter, image) == expected
    environment = os.environ | {"PYTHONPATH": str(Path(tagseg.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", ELSEWHERE, out, image, seen], env=environment, check=True, timeout=600)
    assert seen.read_bytes() == expected


def test_an_exported_predictor_equals_the_runs(run: Run, tmp_path: Path) -> None:
    export_model(run.root, tmp_path / "model")
    one, two = tagseg.load(run.root, "cpu"), tagseg.load(str(tmp_path / "model"), "cpu")
    for name in ("classes", "scales", "flip", "max_side"):
        assert getattr(one, name) == getattr(two, name)
    assert two.classes == ("background", "cat", "dog") and two.scales == (1.0, 1.5) and not two.network.training


def test_network_json_and_the_weights_hold_the_same_description(run: Run, tmp_path: Path) -> None:
    export_model(run.root, tmp_path / "model")
    about = json.loads((tmp_path / "model/network.json").read_text())
    assert about["classes"] == ["background", "cat", "dog"] and about["tagseg"] == tagseg.__version__
    assert about["licence"] == {"id": None, "text": "none (training started from random weights)"}
    with safe_open(tmp_path / "model/model.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()["tagseg"])
    assert len(told.pop("sha256")) == 64 and told == about


def test_no_path_of_this_machine_is_exported(new_run: MakeRun, tmp_path: Path) -> None:
    weights = tmp_path / "anna/secret/start.safetensors"
    values: dict[str, Any] = {
        "data": {"masks": str(tmp_path / "anna/masks")},
        "train": {"backbone": "test_resnet", "weights": str(weights)},
        "segment": {"weights": r"C:\Users\anna\second.safetensors"},
    }
    run = new_run(tmp_path / "anna", settings=Settings.from_dict(values))
    file = run.segmenter / "network.safetensors"
    tensors, about = load_tensors(file)
    about |= {"weights": str(weights), "nested": {"labels": ["/home/anna/drawn"]}}
    with run.stage("segment"):
        save_tensors(file, tensors, about)
        (run.segmenter / "network.json").write_text(json.dumps(about))
    export_model(run.root, tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        content = path.read_bytes()
        assert b"anna" not in content and str(tmp_path).encode() not in content, path.name
    assert not {"weights", "nested"} & json.loads((tmp_path / "model/network.json").read_text()).keys()
    card = (tmp_path / "model/README.md").read_text()
    assert '"start.safetensors"' in card and '"second.safetensors"' in card and "Data folder: my photos," in card


@pytest.mark.parametrize(
    ("network", "stride", "size"),
    [("deeplabv3plus", 16, (80, 48)), ("deeplabv3plus", 8, (64, 96)), ("upernet", 32, (96, 64))],
)
def test_segmentation_models_pytorch_loads_the_same_network(
    new_run: MakeRun, tmp_path: Path, network: NetworkName, stride: int, size: tuple[int, int]
) -> None:
    run = new_run(tmp_path)
    file = run.segmenter / "network.safetensors"
    ours = empty_segmenter("test_resnet", 3, stride, network).eval()
    with run.stage("segment"):
        about = load_tensors(file)[1] | {"network": network, "stride": stride}
        save_tensors(file, ours.state_dict(), about)
        (run.segmenter / "network.json").write_text(json.dumps(about))
    export_model(run.root, tmp_path / "model")
    theirs = smp.from_pretrained(str(tmp_path / "model"))
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        assert torch.equal(theirs((images - ours.mean) / ours.std), ours(images))
        torch.testing.assert_close(
            tagseg.load(tmp_path / "model", "cpu").network(images), ours(images), atol=1e-4, rtol=1e-4
        )
    # What they save in turn is the same, except for what is ours.
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs/config.json").read_text()) == read_json(tmp_path / "model/config.json")
    mine, saved = (load_tensors(tmp_path / name / "model.safetensors")[0] for name in ("model", "theirs"))
    assert mine.keys() == saved.keys() and all(torch.equal(mine[name], saved[name]) for name in mine)


def test_a_network_that_is_only_ours_has_no_config_json(new_run: MakeRun, tmp_path: Path) -> None:
    run = new_run(tmp_path)
    file = run.segmenter / "network.safetensors"
    ours = empty_segmenter("test_resnet", 3, 16, "deeplabv2").eval()
    with run.stage("segment"):
        about = load_tensors(file)[1] | {"network": "deeplabv2"}
        save_tensors(file, ours.state_dict(), about)
        (run.segmenter / "network.json").write_text(json.dumps(about))
    assert export_model(run.root, tmp_path / "model").files == ("README.md", "model.safetensors", "network.json")
    images = torch.rand(1, 3, 64, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            tagseg.load(tmp_path / "model", "cpu").network(images), ours(images), atol=1e-4, rtol=1e-4
        )


def test_an_export_of_version_0_1_is_loaded_and_replaced(run: Run, tmp_path: Path) -> None:
    old = tmp_path / "model"
    old.mkdir()
    for name in ("network.safetensors", "network.json"):
        (old / name).write_bytes((run.segmenter / name).read_bytes())
    (old / "MODEL_CARD.md").write_text("card")
    images = torch.rand(1, 3, 64, 48)
    with torch.no_grad():
        before = tagseg.load(old, "cpu").network(images)
        export_model(run.root, old, force=True)
        assert listing(old) == FILES and torch.equal(tagseg.load(old, "cpu").network(images), before)


def test_a_description_beside_exported_weights_that_differs_is_an_error(run: Run, tmp_path: Path) -> None:
    export_model(run.root, tmp_path / "model")
    file = tmp_path / "model/network.json"
    file.write_text(file.read_text().replace('"cat"', '"horse"'))
    with pytest.raises(RunError, match=r"network.json: classes is .*, but model.safetensors in the same folder has"):
        tagseg.load(tmp_path / "model", "cpu")


def test_class_names_with_slashes_are_kept() -> None:
    about = {"classes": ["background", "sea/lake"], "weights": "~/a/b.safetensors", "stride": 8, "flip": True}
    assert without_folders(about, keep=("classes",)) == about | {"weights": "b.safetensors"}
    assert without_folders({"scales": (0.5, 1.0), "file": "D:x\\y"}) == {"scales": [0.5, 1.0], "file": "y"}


def test_an_earlier_export_is_replaced_only_with_force(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "deep/model"
    export_model(run.root, out)
    (out / "model.onnx").write_bytes(b"old")
    before = (out / "network.json").stat().st_mtime_ns
    with pytest.raises(RunError, match=r"deep/model: exists; choose another --out or --force"):
        export_model(run.root, out)
    assert (out / "model.onnx").read_bytes() == b"old" and (out / "network.json").stat().st_mtime_ns == before
    export_model(run.root, out, force=True)
    # The old ONNX file belonged to another network.
    assert listing(out) == FILES and listing(out.parent) == ("model",)


def test_an_empty_folder_is_filled(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert export_model(run.root, tmp_path / "empty").files == listing(tmp_path / "empty")


def test_only_an_export_is_ever_replaced(new_run: MakeRun, tmp_path: Path) -> None:
    run = new_run(tmp_path / "a")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"mine")
    (tmp_path / "file").write_text("mine")
    message = r"photos: holds files that no export wrote \(holiday\.jpg\); choose another --out"
    with pytest.raises(RunError, match=message):
        export_model(run.root, tmp_path / "photos", force=True)
    with pytest.raises(RunError, match="file: is a file"):
        export_model(run.root, tmp_path / "file", force=True)
    (run.segmenter / "history.jsonl").unlink()
    before = listing(run.segmenter)
    with pytest.raises(RunError, match="segmenter: holds files that no export wrote"):
        export_model(run.root, run.segmenter, force=True)
    assert listing(run.segmenter) == before and listing(tmp_path / "photos") == ("holiday.jpg",)


def test_a_failed_export_changes_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_model(run.root, tmp_path / "old")

    def broken(*_: object) -> str:
        raise RunError("no card")

    monkeypatch.setattr("tagseg.export.model.model_card", broken)
    for name, force in (("new", False), ("old", True)):
        with pytest.raises(RunError, match="no card"):
            export_model(run.root, tmp_path / name, force=force)
    assert listing(tmp_path) == ("old",) and listing(tmp_path / "old") == FILES


def test_an_export_that_could_not_take_its_place_is_put_there_by_the_same_command(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(run.root, tmp_path / "model")
    replace = Path.replace

    def refused(source: Path, target: Path) -> Path:
        if target == tmp_path / "model/README.md":
            raise PermissionError(errno.EACCES, "in use")
        return replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refused)
        with pytest.raises(WriteError, match="cannot be written: there is no permission"):
            export_model(run.root, tmp_path / "model", force=True)
    assert export_model(run.root, tmp_path / "model").files == FILES
    assert listing(tmp_path) == ("model",) and listing(tmp_path / "model") == FILES


def test_a_run_without_a_finished_segmenter(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        export_model(tmp_path, tmp_path / "model")
    begun = open_run(tmp_path / "run", tmp_path, Settings())
    with pytest.raises(RunError, match="stage segment has not finished; run `tagseg segment"):
        export_model(begun.root, tmp_path / "model")
    assert not (tmp_path / "model").exists()
