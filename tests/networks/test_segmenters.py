import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tagseg.networks.deeplabv2 import RATES, Pyramid
from tagseg.networks.segmenters import NetworkName, Segmenter, choose_network, empty_segmenter

FREE = (0, False)


@pytest.fixture(scope="module")
def network() -> Segmenter:
    torch.manual_seed(0)
    return empty_segmenter("test_resnet", 4, 16).eval()


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("size", [(32, 32), (48, 80)])
def test_scores_have_the_images_size(stride: int, size: tuple[int, int]) -> None:
    network = empty_segmenter("test_resnet", 5, stride).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, *size)).shape == (2, 5, *size)


def test_the_nearest_sizes_that_fit(network: Segmenter) -> None:
    assert network.fitting_size(48.0, 70.0) == (48, 64)
    assert network.fitting_size(57.0, 71.9) == (64, 64)
    assert network.fitting_size(0.5, 100.0) == (32, 96)  # never fewer than two steps


def test_encoder_and_new_parameters_are_all_parameters(network: Segmenter) -> None:
    split = [*network.encoder_parameters(), *network.new_parameters()]
    assert {id(p) for p in split} == {id(p) for p in network.parameters()} and len(split) == len({id(p) for p in split})


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def test_frozen_norms_are_those_of_the_encoder() -> None:
    network = Segmenter("test_resnet", 3, 16, "random", (0, True)).train()
    assert not any(norm.training or norm.weight.requires_grad for norm in norms(network.net.encoder))
    assert norms(network.net.decoder) and all(norm.training for norm in norms(network.net.decoder))
    free = Segmenter("test_resnet", 3, 16, "random", FREE).train()
    assert all(norm.training and norm.weight.requires_grad for norm in norms(free.net.encoder))


def test_early_stages_are_frozen_up_to_a_stride() -> None:
    def learning(stride: int) -> set[str]:
        network = Segmenter("test_resnet", 3, 16, "random", (stride, False))
        return {name for name, p in network.net.encoder.named_parameters() if p.requires_grad}

    everything, late, latest = learning(0), learning(4), learning(8)
    assert latest < late < everything
    assert not any("layer1" in name for name in late) and any("layer2" in name for name in late)


def test_input_is_normalised_as_the_encoder_expects(network: Segmenter) -> None:
    seen = []
    handle = network.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(network.mean.expand(1, 3, 32, 32))
    handle.remove()
    assert seen[0].abs().max() < 1e-6 and not any(name in ("mean", "std") for name in network.state_dict())


def test_start_weights_from_a_file(tmp_path: Path) -> None:
    encoder = empty_segmenter("test_resnet", 3, 16).net.encoder.model
    weights = {f"{name}": torch.full_like(value, 0.5) for name, value in encoder.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"half\.safetensors: not weights of test_resnet: \d+ of \d+ tensors are missing"
    ):
        save_file({"conv1.0.weight": weights["conv1.0.weight"]}, tmp_path / "half.safetensors")
        Segmenter("test_resnet", 3, 16, str(tmp_path / "half.safetensors"), FREE)
    save_file(weights, tmp_path / "start.safetensors")
    network = Segmenter("test_resnet", 3, 16, str(tmp_path / "start.safetensors"), FREE)
    assert all((p == 0.5).all() for p in network.net.encoder.parameters())
    assert not all((p == 0.5).all() for p in network.net.decoder.parameters())


def test_missing_weights_name_both_ways() -> None:
    with pytest.raises(
        ValueError, match=r"weights of mobilenetv2_100 are not available .*Connect once.*--train\.weights FILE"
    ):
        Segmenter("mobilenetv2_100", 3, 16, "timm", FREE)


def test_an_encoder_that_cannot_be_dilated_is_named() -> None:
    with pytest.raises(ValueError, match=r"encoder test_vit: has features at one .*--segment\.network deeplabv2"):
        Segmenter("test_vit", 3, 16, "random", FREE)


def test_an_unknown_encoder_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"encoder 'no_such_net': timm has no such model; choose another --segment\.encoder"
    ):
        Segmenter("no_such_net", 3, 16, "random", FREE)


def test_start_is_reproducible() -> None:
    torch.manual_seed(3)
    one = empty_segmenter("test_resnet", 3, 16).state_dict()
    torch.manual_seed(3)
    two = empty_segmenter("test_resnet", 3, 16).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one) and math.isfinite(sum(v.sum() for v in one.values()))


EVERY = [
    ("deeplabv2", "test_resnet", 8, (73, 97)),
    ("deeplabv2", "vgg11", 8, (72, 96)),
    ("deeplabv2", "test_vit", 16, (64, 96)),
    ("deeplabv2", "test_convnext", 16, (64, 96)),
    ("deeplabv3plus", "test_resnet", 16, (65, 97)),
    ("upernet", "test_resnet", 16, (64, 96)),
    ("upernet", "test_convnext", 16, (64, 96)),
]


@pytest.mark.parametrize(("name", "encoder", "stride", "size"), EVERY)
def test_every_network_learns_at_any_size_it_takes(
    name: NetworkName, encoder: str, stride: int, size: tuple[int, int]
) -> None:
    network = Segmenter(encoder, 3, stride, "random", FREE, name)
    assert network.fitting_size(70, 100) == size
    pictures = torch.rand(2, 3, *size)
    truth = (pictures[:, 0] > 0.5).long() + (pictures[:, 1] > 0.5).long()
    scores = network.train()(pictures)
    assert scores.shape == (2, 3, *size)
    nn.functional.cross_entropy(scores, truth).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.new_parameters())
    assert any(p.grad is not None and p.grad.any() for p in network.encoder_parameters())
    split = [*network.encoder_parameters(), *network.new_parameters()]
    assert {id(p) for p in split} == {id(p) for p in network.parameters()} and len(split) == len({id(p) for p in split})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "size"), [("vit_small_patch14_dinov2", (70, 98)), ("vit_small_patch16_dinov3", (64, 96))]
)
def test_dino_encoders_take_any_multiple_of_their_patch(encoder: str, size: tuple[int, int]) -> None:
    network = empty_segmenter(encoder, 3, 16, choose_network("auto", encoder, 16)).eval()
    assert network.fitting_size(70, 100) == size
    with torch.no_grad():
        small, large = network(torch.rand(1, 3, *size)), network(torch.rand(1, 3, 2 * size[0], size[1]))
    assert small.shape == (1, 3, *size) and large.shape == (1, 3, 2 * size[0], size[1])


def test_a_pyramid_is_the_sum_of_dilated_convolutions() -> None:
    pyramid, features = Pyramid(4, 3, 0).eval(), torch.randn(2, 4, 9, 11)
    expected = torch.zeros(2, 3, 9, 11)
    for branch, rate in zip(pyramid.branches, RATES, strict=True):
        assert isinstance(branch, nn.Conv2d) and branch.bias is not None
        padded = nn.functional.pad(features, (rate,) * 4)
        for dy in range(3):
            for dx in range(3):
                seen = padded[:, :, dy * rate : dy * rate + 9, dx * rate : dx * rate + 11]
                expected += torch.einsum("oi,bihw->bohw", branch.weight[:, :, dy, dx], seen)
        expected += branch.bias[None, :, None, None]
    with torch.no_grad():
        assert torch.allclose(pyramid(features), expected, atol=1e-5)


def test_around_vgg_each_branch_has_hidden_layers() -> None:
    shapes = [tuple(p.shape) for p in Pyramid(512, 21, 1024).branches[0].parameters() if p.dim() > 1]
    assert shapes == [(1024, 512, 3, 3), (1024, 1024, 1, 1), (21, 1024, 1, 1)]


def test_auto_looks_at_the_encoder() -> None:
    found = {name: choose_network("auto", name, 16) for name in ("test_vit", "resnet50", "test_mambaout")}
    # A plain transformer, a model with a choice of output strides, and one whose strides are fixed.
    assert found == {"test_vit": "deeplabv2", "resnet50": "deeplabv3plus", "test_mambaout": "upernet"}
    assert choose_network("auto", "swin_tiny_patch4_window7_224", 16) == "deeplabv2"
    assert choose_network("upernet", "resnet50", 16) == "upernet"
    with pytest.raises(ValueError, match="timm has no such model"):
        choose_network("auto", "resnet5000", 16)


def test_an_encoder_of_one_image_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"swin_tiny_patch4_window7_224: does not suit upernet .*224"):
        Segmenter("swin_tiny_patch4_window7_224", 3, 16, "random", FREE, "upernet")
