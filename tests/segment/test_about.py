import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import tagseg
from tagseg.errors import RunError
from tagseg.networks.segmenters import empty_segmenter
from tagseg.run.open import open_run
from tagseg.segment.about import check_about
from tagseg.settings.settings import Settings
from tagseg.system.process import peak_memory_mb, reset_peak_memory
from tagseg.training.checkpoint import load_tensors, save_tensors

ABOUT: dict[str, Any] = {
    "classes": ["background", "cat"],
    "encoder": "test_resnet",
    "stride": 16,
    "predict_scales": [1.0],
    "predict_flip": True,
    "max_side": 64,
}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return empty_segmenter("test_resnet", 2, 16).state_dict()


@pytest.fixture
def folder(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """Return an intact folder for a test to damage."""
    save_tensors(tmp_path / "model/network.safetensors", weights, ABOUT)
    (tmp_path / "model/network.json").write_text(json.dumps(ABOUT))
    return tmp_path / "model"


def test_a_good_description_passes_and_may_have_more_keys() -> None:
    check_about(ABOUT | {"licence": {"id": "mit"}, "predict_scales": [0.5, 1, 2.0], "max_side": 4096}, Path("x"))
    check_about(ABOUT | {"classes": ["background", *(f"class {i}" for i in range(254))]}, Path("x"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", None),
        ("classes", "background"),
        ("classes", []),
        ("classes", ["background"]),
        ("classes", ["cat", "dog"]),
        ("classes", ["background", 3]),
        ("classes", ["background", ""]),
        ("classes", ["background", "x" * 1001]),
        ("classes", ["background", *(f"class {i}" for i in range(255))]),
        ("encoder", 7),
        ("encoder", ""),
        ("encoder", ["test_resnet"]),
        ("stride", "16"),
        ("stride", 10**30),
        ("stride", 16.5),
        ("predict_scales", 1.0),
        ("predict_scales", []),
        ("predict_scales", [0.0]),
        ("predict_scales", [1.0, 1e9]),
        ("predict_scales", [float("nan")]),
        ("predict_scales", [True]),
        ("predict_scales", [1.0] * 101),
        ("predict_flip", 1),
        ("predict_flip", None),
        ("max_side", 0),
        ("max_side", -5),
        ("max_side", 512.0),
        ("max_side", True),
        ("max_side", "512"),
        ("decoder_channels", 0),
        ("decoder_channels", 4097),
        ("decoder_channels", 2.5),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(name: str, value: object) -> None:
    with pytest.raises(
        RunError,
        match=rf"^network\.safetensors: does not describe a segmentation network of tagseg \({name}.*expected ",
    ):
        check_about(ABOUT | {name: value}, Path("network.safetensors"))


@pytest.mark.parametrize("name", list(ABOUT))
def test_a_missing_value_is_named(name: str) -> None:
    with pytest.raises(
        RunError, match=rf"^x: does not describe a segmentation network of tagseg \({name} is missing\)"
    ):
        check_about({key: value for key, value in ABOUT.items() if key != name}, Path("x"))


def test_networks_without_a_number_of_decoder_channels_have_those_of_the_paper() -> None:
    assert check_about(ABOUT, Path("x")).decoder_channels == 256


@pytest.mark.parametrize("about", [[], {}, "x", None, 3])
def test_anything_but_a_description_is_refused(about: object) -> None:
    with pytest.raises(RunError, match="x: has no description of a segmentation network of tagseg"):
        check_about(about, Path("x"))


def test_a_folder_is_loaded_as_it_was_saved(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    for _ in range(2):
        predictor = tagseg.load(folder, "cpu")
        assert predictor.classes == ("background", "cat")
        assert all(torch.equal(value, weights[name]) for name, value in predictor.network.state_dict().items())
        (folder / "network.json").unlink(missing_ok=True)  # the weights contain the whole description


@pytest.mark.parametrize("metadata", ["[" * 100_000, "9" * 5000, "{", "[1]", "null"])
def test_absurd_metadata_is_an_error_that_names_the_file(
    metadata: str, folder: Path, weights: dict[str, torch.Tensor]
) -> None:
    save_file(weights, folder / "network.safetensors", metadata={"tagseg": metadata})
    with pytest.raises(RunError, match=r"model/network\.safetensors: .*Copy the folder again, or recreate it"):
        tagseg.load(folder, "cpu")


def test_weights_of_other_programs_are_refused(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, folder / "network.safetensors")
    with pytest.raises(RunError, match=r"network\.safetensors: has no description of a segmentation network"):
        tagseg.load(folder, "cpu")


def test_pickled_weights_are_never_unpickled(folder: Path, tmp_path: Path) -> None:
    # Written by hand: a pickle of an object whose __reduce__ creates a file.
    file = tmp_path / "executed"
    pickled = f"cbuiltins\nopen\n(V{file}\nVw\ntR.".encode()
    for content in (pickled, (len(pickled)).to_bytes(8, "little") + pickled):
        (folder / "network.safetensors").write_bytes(content)
        with pytest.raises(RunError, match=r"network\.safetensors: missing or damaged"):
            tagseg.load(folder, "cpu")
    assert not file.exists()


def test_a_truncated_file_is_damaged(folder: Path) -> None:
    file = folder / "network.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"network\.safetensors: missing or damaged .*Copy the folder again"):
        tagseg.load(folder, "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "hf-hub:someone/something"}, "cannot be built here .*timm has no such model"),
        ({"encoder": "test_vit"}, "cannot be built here"),
        ({"encoder": "test_resnet.no_such_tag"}, "cannot be built here"),
        ({"encoder": "test_convnext"}, r"network\.safetensors: "),
        ({"classes": ["background", "cat", "dog"]}, "does not fit the network"),
    ],
)
def test_a_description_that_does_not_fit_the_weights_is_refused(
    change: dict[str, Any], message: str, folder: Path, weights: dict[str, torch.Tensor]
) -> None:
    (folder / "network.json").unlink()
    save_tensors(folder / "network.safetensors", weights, ABOUT | change)
    with pytest.raises(RunError, match=message):
        tagseg.load(folder, "cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"network\.json: damaged"),
        ("[" * 100_000, r"network\.json: damaged"),
        ("[]", r"network\.json: damaged \(expected an object\)"),
        ("{}", r"network\.json: classes is missing, but network\.safetensors in the same folder has"),
        (json.dumps(ABOUT | {"max_side": "huge"}), r"network\.json: max_side is 'huge', .* has 64, which is used"),
    ],
)
def test_a_network_json_that_differs_from_the_weights_is_refused(content: str, message: str, folder: Path) -> None:
    (folder / "network.json").write_text(content)
    with pytest.raises(RunError, match=message):
        tagseg.load(folder, "cpu")


def test_folders_without_a_network_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match=r"not a run folder .*no network\.safetensors .*`tagseg export-model RUN"):
            tagseg.load(path, "cpu")
    run = open_run(tmp_path / "run", tmp_path, Settings())
    with pytest.raises(RunError, match="stage segment has not finished"):
        tagseg.load(run.root)


def test_an_unavailable_device_is_not_blamed_on_the_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"--device tpu: not available here") as caught:
        tagseg.load(folder, "tpu")
    assert "Copy the folder" not in str(caught.value)


TOO_LARGE = r"max_side \d+ at scale .* is too large, expected at most 8192 pixels"


@pytest.mark.parametrize(
    ("side", "scales", "message"),
    [
        (8193, [1.0], TOO_LARGE),
        (10**9, [1.0], TOO_LARGE),
        (512, [1.0, 32], TOO_LARGE),
        (2**70, [0.5], r"max_side: .*expected a whole number <= 2147483647"),
    ],
)
def test_sides_that_would_fill_the_memory_are_refused(side: int, scales: list[float], message: str) -> None:
    with pytest.raises(RunError, match=rf"^x: .*\({message}"):
        check_about(ABOUT | {"max_side": side, "predict_scales": scales}, Path("x"))


def test_an_enormous_network_is_refused_before_it_uses_memory(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    (folder / "network.json").unlink()
    enormous = {"encoder": "vit_giant_patch14_224", "network": "deeplabv2"}  # 4 GB of weights
    save_tensors(folder / "network.safetensors", weights, ABOUT | enormous)
    reset_peak_memory()
    before = peak_memory_mb()
    with pytest.raises(RunError, match=r"network\.safetensors: does not fit the network"):
        tagseg.load(folder, "cpu")
    assert peak_memory_mb() - before < 300


def test_a_segmenter_from_outside_the_run_is_refused(folder: Path, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", tmp_path, Settings())
    with run.stage("segment"):
        folder.rename(run.segmenter)
    assert tagseg.load(run.root, "cpu").classes == ("background", "cat")
    tensors, about = load_tensors(run.segmenter / "network.safetensors")
    tensors = {name: value + 1 if value.is_floating_point() else value for name, value in tensors.items()}
    save_tensors(run.segmenter / "network.safetensors", tensors, about)
    with pytest.raises(
        RunError, match=r"network\.safetensors: differs from its checksum in manifest\.json: .* after stage segment"
    ):
        tagseg.load(run.root, "cpu")
