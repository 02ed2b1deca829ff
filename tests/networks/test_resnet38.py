from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tagseg.networks import backbones as module
from tagseg.networks.backbones import build_backbone, earlier_layer, is_known
from tagseg.networks.deeplabv2 import DeepLabV2
from tagseg.networks.resnet38 import ResNet38
from tagseg.networks.segmenters import Segmenter, choose_network


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let resnet38 be built with a sixteenth of its channels."""
    monkeypatch.setattr(module, "ResNet38", lambda stride: ResNet38(stride, width=4))


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}


def test_it_is_the_papers_model_a() -> None:
    with torch.device("meta"):
        model = ResNet38(32)
    layers = convolutions(model)
    deep = [name for name in layers if not name.endswith("conv_branch1")]  # shortcuts do not count
    assert len(deep) + 1 == 38  # the classifier is the last
    assert sum(value.numel() for value in model.parameters()) == 105_070_912
    units = ["b2.a", "b3_2.b1", "b4_5.b1", "b5_2.a", "b5_2.b1", "b6.a", "b6.b1", "b6.b2", "b7.a", "b7.b1", "b7.b2"]
    found = [layers[unit.replace(".", ".conv_branch2")] for unit in units]
    shapes = [(layer.out_channels, layer.kernel_size[0]) for layer in found]
    assert shapes == [(128, 3), (256, 3), (512, 3), (512, 3), (1024, 3), (512, 1), (1024, 3), (2048, 1), (1024, 1),
                      (2048, 3), (4096, 1)]  # fmt: skip
    assert [name for name in layers if "branch1" in name] == [
        f"{unit}.conv_branch1" for unit in ("b2", "b3", "b4", "b5", "b6", "b7")
    ]


@pytest.mark.parametrize(
    ("stride", "moving", "dilations"),
    [
        (8, ["b2", "b3", "b4"], {"b4_5": (1, 1), "b5": (1, 2), "b5_1": (2, 2), "b6": (1, 4), "b7": (1, 4)}),
        (16, ["b2", "b3", "b4", "b5"], {"b5": (1, 1), "b5_2": (1, 1), "b6": (1, 2), "b7": (1, 2)}),
        (32, ["b2", "b3", "b4", "b5", "b6"], {"b5_2": (1, 1), "b6": (1, 1), "b7": (1, 1)}),
    ],
)
def test_blocks_beyond_the_stride_are_dilated(
    stride: int, moving: list[str], dilations: dict[str, tuple[int, int]]
) -> None:
    layers = convolutions(ResNet38(stride, width=1))
    assert [
        name.partition(".")[0] for name, layer in layers.items() if layer.stride == (2, 2) and "2a" in name
    ] == moving
    for unit, expected in dilations.items():
        found = tuple(layers[f"{unit}.conv_branch2{end}"].dilation[0] for end in ("a", "b1"))
        assert found == expected, unit
    assert ResNet38(stride, width=1)(torch.rand(1, 3, 65, 97)).shape == (1, 64, 64 // stride + 1, 96 // stride + 1)


@torch.no_grad()
def test_dilation_computes_what_the_strides_do_in_more_places() -> None:
    strided, dilated = ResNet38(32, width=2).eval(), ResNet38(8, width=2).eval()
    for layer in strided.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    dilated.load_state_dict(strided.state_dict())
    image = torch.rand(1, 3, 129, 129)
    coarse, fine = strided(image), dilated(image)
    assert (coarse.shape[2:], fine.shape[2:]) == ((5, 5), (17, 17))
    torch.testing.assert_close(fine[..., ::4, ::4], coarse, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_unit_by_hand() -> None:
    """The first unit of a block, from the definition: activated, two convolutions, a projected shortcut."""
    model = ResNet38(8, width=2).eval()
    given = torch.randn(2, 2, 9, 9)
    unit = model.get_submodule("b2")
    weights = dict(unit.named_parameters())
    first, second, shortcut = (weights[f"conv_branch{end}.weight"] for end in ("2a", "2b1", "1"))
    scale = (1 + 1e-5) ** -0.5  # of a fresh batch norm

    def convolve(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        return torch.conv2d(x, weight, None, stride, padding)

    activated = (given * scale).relu()
    inner = (convolve(activated, first, 2, 1) * scale).relu()
    expected = convolve(activated, shortcut, 2, 0) + convolve(inner, second, 1, 1)
    torch.testing.assert_close(unit(given), expected)


def test_start_weights_come_from_a_file_that_is_checked(narrow: None, tmp_path: Path) -> None:
    tensors = {key: torch.randn_like(value) if value.is_floating_point() else value
               for key, value in ResNet38(8, width=4).state_dict().items()}  # fmt: skip
    file = tmp_path / "resnet38.safetensors"
    save_file(
        {key: value for key, value in tensors.items() if "num_batches" not in key} | {"fc.weight": torch.ones(2)}, file
    )
    built = build_backbone("resnet38", str(file), 8)
    assert (built.stride, built.channels, built.cornered) == (8, 256, True)
    state = built.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors.items())
    del tensors["b6.conv_branch2b1.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"not weights of resnet38: 1 of .* first b6\.conv_branch2b1\.weight"):
        build_backbone("resnet38", str(file), 8)
    with pytest.raises(ValueError, match=r"resnet38 are not available from timm; give a file with --train\.weights"):
        build_backbone("resnet38", "timm", 8)


def test_it_has_the_face_of_a_timm_backbone(narrow: None) -> None:
    built = build_backbone("resnet38", "random", 16, "auto")
    assert is_known("resnet38") and earlier_layer(built.model) == "b6"
    features, earlier = built.with_earlier(torch.rand(1, 3, 65, 65))
    assert features.shape == (1, 256, 5, 5) and earlier.shape == (1, 128, 5, 5)
    module.freeze(built.model, built.model.feature_info, 4)  # type: ignore[arg-type]
    learning = {name.partition(".")[0] for name, value in built.model.named_parameters() if value.requires_grad}
    assert learning == {*(f"b4_{i}" for i in range(1, 6)), "b4", "b5", "b5_1", "b5_2", "b6", "b7", "bn7"}


def test_deeplabv2_stands_on_it(narrow: None) -> None:
    assert choose_network("auto", "resnet38", 16) == "deeplabv2"
    segmenter = Segmenter("resnet38", 3, 8, "random", (0, True), "deeplabv2")
    assert isinstance(segmenter.net, DeepLabV2) and segmenter.fitting_size(64.0, 64.0) == (65, 65)
    assert segmenter(torch.rand(1, 3, 65, 65)).shape == (1, 3, 65, 65)
    with pytest.raises(ValueError, match=r"resnet38: goes with DeepLab-v2 alone.*--segment\.network deeplabv2"):
        Segmenter("resnet38", 3, 16, "random", (0, True), "deeplabv3plus")
