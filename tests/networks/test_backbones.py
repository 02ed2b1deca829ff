from pathlib import Path

import pytest
import timm
import torch
from PIL import ImageOps
from safetensors.torch import load_file, save_file
from torch import nn

from tagseg.data.images import read_image
from tagseg.networks.backbones import Backbone, build_backbone, earlier_layer, finer_layers, freeze, freeze_batch_norm
from tagseg.training.loading import to_tensor


@pytest.fixture(scope="module")
def dilated_vgg() -> Backbone:
    return build_backbone("vgg11", "random", 8)


def symmetrise(module: nn.Module) -> None:
    """Make all kernels equal to their mirror images."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = (layer.weight.data + layer.weight.data.flip(-1)) / 2


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [
        ("test_resnet", 8, 96),
        ("test_resnet", 16, 96),
        ("test_resnet", 32, 96),
        ("resnet10t", 8, 512),
        ("resnet10t", 16, 512),
        ("test_efficientnet", 16, 256),
        ("test_convnext", 16, 64),
        ("test_vit", 16, 64),
        ("vit_tiny_patch16_224", 16, 192),
    ],
)
def test_stride_and_channels(name: str, stride: int, channels: int) -> None:
    backbone = build_backbone(name, "random", stride)
    assert (backbone.stride, backbone.channels) == (stride, channels)
    size = backbone.fitting_size(64.0, 96.0)
    cells = tuple((side - backbone.cornered) // stride + backbone.cornered for side in size)
    assert backbone(torch.rand(2, 3, *size)).shape == (2, channels, *cells)


def test_vgg_is_dilated_as_in_the_paper(dilated_vgg: Backbone) -> None:
    assert (dilated_vgg.stride, dilated_vgg.channels) == (8, 512)
    layers = list(dilated_vgg.model.features)  # type: ignore[arg-type]
    strides = [layer.stride for layer in layers if isinstance(layer, nn.MaxPool2d)]
    assert strides == [2, 2, 2, 1, 1]
    pool4 = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)][3]
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            assert layer.dilation == layer.padding == ((2, 2) if i > pool4 else (1, 1))
    # Two convolutions of conv5 behind the dilation, and nothing before it is touched.
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers[pool4:]) == 2
    assert dilated_vgg(torch.rand(1, 3, 64, 48)).shape == (1, 512, 8, 6)


def test_a_backbone_of_one_stride_keeps_it_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    for name, stride in (("test_vit", 16), ("test_mambaout", 32)):
        caplog.clear()
        assert build_backbone(name, "random", 8).stride == stride
        assert caplog.messages == [f"backbone {name}: has {stride} image pixels per cell, not 8"]
        caplog.clear()
        assert build_backbone(name, "random", stride).stride == stride and not caplog.messages


def test_tokens_become_the_map_in_reading_order() -> None:
    """A changed patch moves its own cell most, at its own place."""
    backbone = build_backbone("test_vit", "random", 16)
    images = torch.rand(1, 3, 48, 64)
    changed = images.clone()
    changed[:, :, 16:32, 32:48] = 0
    with torch.no_grad():
        moved = (backbone(changed) - backbone(images)).norm(dim=1)[0]
    assert moved.shape == (3, 4)
    assert int(moved.argmax()) == 1 * 4 + 2


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet5x", "random", r"backbone 'resnet5x': timm has no such model; close: .*resnet50"),
        ("no_model_at_all", "random", r"'no_model_at_all': timm has no such model$"),
        ("resnet50.no_tag", "random", r"'resnet50.no_tag': timm has no such model \(.*no_tag"),
        ("cait_xxs24_224", "random", r"cait_xxs24_224: (does not take images of|takes images of few sizes only)"),
        ("crossvit_tiny_240", "random", r"crossvit_tiny_240: its output is not a map; tagseg needs"),
        ("inception_v4", "random", r"inception_v4: has 5 x 12 cells for 224 x 448 pixels, not one per 8, 14, 16"),
    ],
)
def test_unknown_and_unfit_models(name: str, weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(name, weights, 16)


def test_weights_from_a_file(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    save_file(model.state_dict(), tmp_path / "good.safetensors")
    backbone = build_backbone("test_resnet", str(tmp_path / "good.safetensors"), 16)
    own = backbone.model.state_dict()
    assert own and all(torch.equal(value, model.state_dict()[name]) for name, value in own.items())


def test_weights_files_that_do_not_do(tmp_path: Path) -> None:
    tensors = timm.create_model("test_resnet", pretrained=False).state_dict()
    save_file(tensors, tmp_path / "resnet.safetensors")
    save_file(tensors, tmp_path / "ending.bin")
    short = {name: value for name, value in tensors.items() if name != "layer1.0.conv1.weight"}
    save_file(short, tmp_path / "short.safetensors")
    torch.save(tensors, tmp_path / "pickle.safetensors")
    (tmp_path / "empty.safetensors").touch()
    cases = [
        ("test_resnet", "missing.safetensors", r"missing.safetensors: not found; give timm, random or the path"),
        ("test_resnet", "pickle.safetensors", r"pickle.safetensors: not a safetensors file"),
        ("test_resnet", "empty.safetensors", r"empty.safetensors: not a safetensors file"),
        ("test_resnet", "ending.bin", r"ending.bin: not a safetensors file \(its name must end in .safetensors\)"),
        ("test_resnet", "short.safetensors", r"not weights of test_resnet: 1 of \d+ tensors .* layer1.0.conv1.weight"),
        ("resnet10t", "resnet.safetensors", r"resnet.safetensors: not weights of resnet10t: \d+ of \d+ tensors"),
    ]
    for name, file, message in cases:
        with pytest.raises(ValueError, match=message):
            build_backbone(name, str(tmp_path / file), 16)


def test_weights_that_cannot_be_downloaded_name_both_ways_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # nothing was downloaded before
    with pytest.raises(
        ValueError, match=r"(?s)Connect once .*--train.weights FILE.safetensors.*--train.weights random"
    ):
        build_backbone("test_resnet", "timm", 16)


def test_images_are_normalised_as_the_weights_expect() -> None:
    backbone = build_backbone("test_resnet", "random", 16)
    seen: list[torch.Tensor] = []
    backbone.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    backbone.model.forward_features = lambda images: seen.append(images) or images  # type: ignore[assignment]
    backbone(torch.full((1, 3, 2, 2), 0.5))
    expected = [
        (0.5 - m) / s
        for m, s in zip(backbone.model.pretrained_cfg["mean"], backbone.model.pretrained_cfg["std"], strict=True)
    ]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected)


def gradients(up_to_stride: int) -> set[str]:
    """Names of the parameters of a small ResNet that learn when stages up to a stride are frozen."""
    backbone = build_backbone("test_resnet", "random", 16)
    freeze(backbone.model, backbone.model.feature_info, up_to_stride)  # type: ignore[arg-type]
    features = backbone(torch.rand(1, 3, 33, 33))
    if features.requires_grad:
        features.sum().backward()
    return {name for name, parameter in backbone.model.named_parameters() if parameter.grad is not None}


def test_frozen_stages_get_no_gradient() -> None:
    everything = gradients(0)
    assert {name.split(".")[0] for name in everything} == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert {name.split(".")[0] for name in gradients(4)} == {"layer2", "layer3", "layer4"}
    assert {name.split(".")[0] for name in gradients(8)} == {"layer3", "layer4"}
    assert gradients(16) == set()


def test_freezing_a_vgg_stops_before_the_stage_behind(dilated_vgg: Backbone) -> None:
    freeze(dilated_vgg.model, dilated_vgg.model.feature_info, 4)  # type: ignore[arg-type]
    convs = [layer for layer in dilated_vgg.model.features if isinstance(layer, nn.Conv2d)]  # type: ignore[union-attr]
    assert [conv.weight.requires_grad for conv in convs] == [False] * 4 + [True] * 4  # conv1 to conv3 lie before pool3


def test_frozen_batch_norms_keep_statistics_and_weights() -> None:
    backbone = build_backbone("test_resnet", "random", 16)
    backbone.train()
    freeze_batch_norm(backbone)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.rand(2, 3, 33, 33)).sum().backward()
    norms = [layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms and not any(layer.training for layer in norms)
    assert all(parameter.grad is None for layer in norms for parameter in layer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_fitting_sizes_by_hand(dilated_vgg: Backbone) -> None:
    cornered = build_backbone("test_resnet", "random", 16)
    assert cornered.cornered and not dilated_vgg.cornered
    assert cornered.fitting_size(224.0, 240.0) == (225, 241)
    assert cornered.fitting_size(0.5, 34.4) == (33, 33)  # never fewer than two steps
    assert dilated_vgg.fitting_size(224.0, 227.9) == (224, 224)
    assert dilated_vgg.fitting_size(229.0, 3.0) == (232, 16)


@pytest.mark.parametrize(("name", "stride"), [("mobilenetv2_100", 8), ("test_efficientnet", 16)])
def test_mirrored_image_gives_the_mirrored_map(name: str, stride: int) -> None:
    """With symmetric kernels and a fitting size no cell is shifted; at another size the map would be."""
    backbone = build_backbone(name, "random", stride)
    symmetrise(backbone)
    images = torch.rand(1, 3, *backbone.fitting_size(64.0, 96.0))
    with torch.no_grad():
        maps, mirrored = backbone(images), backbone(images.flip(-1))
    torch.testing.assert_close(mirrored.flip(-1), maps, atol=1e-4, rtol=1e-3)
    enlarged, again = (backbone.enlarge(m, images.shape[-2:]) for m in (maps, mirrored))
    torch.testing.assert_close(again.flip(-1), enlarged, atol=1e-4, rtol=1e-3)


def test_cells_are_enlarged_to_where_they_lie(dilated_vgg: Backbone) -> None:
    maps = torch.rand(1, 2, 3, 4)
    cornered = build_backbone("test_efficientnet", "random", 16)
    on_pixels = cornered.enlarge(maps, (33, 49))
    torch.testing.assert_close(on_pixels[..., ::16, ::16], maps)  # cell (i, j) on pixel (16 i, 16 j)
    assert cornered.enlarge(maps.half(), (33, 49)).dtype == torch.float32
    # A tile's middle lies between its pixels 3 and 4, so pixel p is at (p - 3.5) / 8 on a ramp of cells.
    assert torch.equal(cornered.reduce(on_pixels[:, 0], (3, 4)), maps[:, 0])  # and back
    pixels = torch.arange(32.0).expand(1, 24, 32)
    assert dilated_vgg.reduce(pixels, (3, 4)).tolist() == [[[3.5, 11.5, 19.5, 27.5]] * 3]
    ramp = dilated_vgg.enlarge(torch.arange(4.0).expand(1, 1, 3, 4), (24, 32))[0, 0, 0]
    expected = ((torch.arange(32) - 3.5) / 8).clamp(0, 3)
    torch.testing.assert_close(ramp, expected)


def test_real_weights_recognise_cats(shared_data: Path) -> None:
    file = shared_data / "weights" / "mobilenetv2_100.safetensors"
    folder = shared_data / "data" / "voc_animals"
    if not file.exists() or not folder.exists():
        pytest.skip("no real weights or images")
    backbone = build_backbone("mobilenetv2_100", str(file), 32)
    tensors = load_file(file)
    rows = [line.split(",") for line in (folder / "tags.csv").read_text(encoding="utf-8").splitlines()[1:]]
    hits = []
    for name in [name for name, tags in rows if tags == "cat"][:6]:
        image = ImageOps.fit(read_image(folder / name, 120.0), (225, 225))
        with torch.no_grad():
            pooled = backbone(to_tensor(image)[None]).mean((2, 3))[0]
        scores = tensors["classifier.weight"].float() @ pooled + tensors["classifier.bias"].float()
        hits.append(bool(set(scores.topk(5).indices.tolist()) & set(range(281, 286))))  # ImageNet's five cats
    assert sum(hits) >= 5  # of 6; chance would be none


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4.0"),
        ("resnet50", "layer4.1"),
        ("mobilenetv2_100", "blocks.5"),
        ("efficientnet_b0", "blocks.5"),
        ("vgg16", "features.27"),
        ("convnext_atto", "stages.3.blocks.0"),
        ("vit_tiny_patch16_224", "blocks.10"),
        ("test_resnet", "layer3"),
    ],
)
def test_the_earlier_layer_is_the_block_before_the_last(name: str, layer: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    assert earlier_layer(model) == layer


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "layer"), [("test_resnet", "auto"), ("test_resnet", "layer2"), ("vgg11", "auto"), ("test_vit", "auto")]
)
def test_the_earlier_layer_comes_in_the_cells_of_the_last(name: str, layer: str) -> None:
    backbone = build_backbone(name, "random", 16, layer)
    plain = build_backbone(name, "random", 16)
    plain.load_state_dict(backbone.state_dict())
    images = torch.rand(2, 3, *backbone.fitting_size(64.0, 96.0))
    features, earlier = backbone.with_earlier(images)
    assert torch.equal(features, plain(images)) and torch.equal(features, backbone(images))
    assert earlier.shape == (2, backbone.earlier_channels, *features.shape[2:])
    assert earlier.shape[1] != features.shape[1] or not torch.allclose(earlier, features)
    last, same = plain.with_earlier(images)
    assert same is last


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "layers", "cells"),
    [("test_resnet", ["layer2", "last", "layer3"], [8, 16, 16]), ("test_vit", ["blocks.0", "last"], [16, 16])],
)
def test_several_layers_come_in_their_own_cells(name: str, layers: list[str], cells: list[int]) -> None:
    backbone = build_backbone(name, "random", 16, layers[0])
    images = torch.rand(2, 3, *backbone.fitting_size(64, 96))
    maps = backbone.layer_maps(images, layers)
    extra = int(backbone.cornered)
    assert [(images.shape[2] - extra) // (map_.shape[2] - extra) for map_ in maps] == cells
    features, earlier = backbone.with_earlier(images)
    assert torch.equal(maps[layers.index("last")], features)
    if earlier.shape == maps[0].shape:
        assert torch.equal(maps[0], earlier)
    assert not [module for module in backbone.model.modules() if len(module._forward_hooks) > 1]


def test_finer_layers_end_at_8_pixels_per_cell() -> None:
    for name, expected in {"mobilenetv2_100": ["blocks.2"], "resnet50": ["layer2"], "vit_tiny_patch16_224": []}.items():
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        assert finer_layers(model, 16) == expected


def test_an_earlier_layer_that_does_not_exist_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"backbone test_resnet: has no layer 'layer9' \(--rca.layer\); known: .*layer3"
    ):
        build_backbone("test_resnet", "random", 16, "layer9")


@pytest.mark.parametrize(
    ("name", "stride", "shape"),
    [
        ("mobilenetv3_small_050", 32, (1, 288, 3, 5)),
        ("mambaout_femto", 32, (1, 288, 3, 5)),  # channels last
        ("swinv2_cr_tiny_ns_224", 32, (1, 768, 3, 5)),  # blocks have another layout than the output
        ("dla46_c", 32, (1, 256, 3, 5)),  # sizes must be multiples of 32
        ("densenet121", 32, (1, 1024, 3, 5)),
    ],
)
def test_backbones_without_a_choice_of_stride_or_of_another_layout(
    name: str, stride: int, shape: tuple[int, ...]
) -> None:
    backbone = build_backbone(name, "random", 16, "auto")
    assert backbone.stride == stride
    with torch.no_grad():
        last, earlier = backbone.with_earlier(torch.rand(1, 3, *backbone.fitting_size(96, 160)))
    cells = tuple(side + backbone.cornered for side in shape[2:])
    assert last.shape == (*shape[:2], *cells) and earlier.shape[2:] == cells
