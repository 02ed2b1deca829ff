import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagseg.errors import RunError
from tagseg.rca.aggregation import attend
from tagseg.rca.bank import Bank
from tagseg.rca.network import RcaNetwork, build_network
from tagseg.rca.regions import mine_regions
from tagseg.rca.train import load_network
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.training.checkpoint import save_tensors

TRAIN = TrainSettings(backbone="test_resnet", weights="random", neck=6, freeze_stride=0)
RCA = RcaSettings(layer="last", slots=8, prototypes=2, attention_temperature=0.5)


def small_network(train: TrainSettings = TRAIN, rca: RcaSettings = RCA, fill: bool = True) -> RcaNetwork:
    """A network of 3 classes; `fill` gives it prototypes of background and of two classes."""
    torch.manual_seed(0)
    network = build_network(3, train, rca).eval()
    if fill:
        bank = Bank(4, rca.slots, network.channels)
        bank.write(torch.rand(13, network.channels), torch.tensor([0, 0, 0, 1, 3, 3, 3, 3, 3, 3, 3, 3, 3]))
        network.refresh_prototypes(bank, torch.Generator().manual_seed(0))
    return network


def images(b: int = 2) -> Tensor:
    return torch.rand(b, 3, 33, 49, generator=torch.Generator().manual_seed(1))


def slow_refined(features: Tensor, prototypes: Tensor, exists: Tensor, t: float, head: nn.Conv2d) -> Tensor:
    """`O = head([S Q, F])` of one cell's features, straight from the formula."""
    keys = [prototypes[i, j] for i in range(exists.shape[0]) for j in range(exists.shape[1]) if exists[i, j]]
    length = max(features.norm().item(), 1e-12)  # a cell may hold nothing but zeros behind the ReLU
    powers = [math.exp((features @ key / key.norm()).item() / length / t) for key in keys]
    context = sum((p / sum(powers) * key for p, key in zip(powers, keys, strict=True)), torch.zeros_like(features))
    assert head.bias is not None
    return head.weight[:, :, 0, 0] @ torch.cat([context, features]) + head.bias


@torch.no_grad()
@pytest.mark.parametrize("attended", [0, 3, 1])
def test_maps_equal_the_textbook_cell_by_cell(attended: int) -> None:
    network = small_network(rca=dataclasses.replace(RCA, attended=attended))
    assert network.exists.tolist() == [[True, True], [True, False], [False, False], [True, True]]
    maps = network(images())
    assert maps.entries is not None
    assert maps.features.shape == (2, 6, 3, 4) and maps.coarse.shape == maps.refined.shape == (2, 3, 3, 4)
    coarse = network.coarse_head[0]
    assert isinstance(coarse, nn.Conv2d) and coarse.bias is not None
    for b in range(2):
        for y in range(3):
            for x in range(4):
                cell = maps.features[b, :, y, x]
                expected = coarse.weight[:, :, 0, 0] @ cell + coarse.bias
                torch.testing.assert_close(maps.coarse[b, :, y, x], expected, atol=1e-5, rtol=1e-4)
                own = maps.entries[b]
                assert own.tolist() == ([0, 1 + int(maps.coarse_scores[b].argmax())] if attended == 1 else [0, 1, 2, 3])
                prototypes, exists = network.prototypes[own], network.exists[own]
                refined = slow_refined(cell, prototypes, exists, 0.5, network.refined_head)
                torch.testing.assert_close(maps.refined[b, :, y, x], refined, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head_convs", [0, 1])
@pytest.mark.parametrize("aggregation", [True, False])
def test_scores_are_the_means_of_the_maps_with_their_gradient(head_convs: int, aggregation: bool) -> None:
    train = dataclasses.replace(TRAIN, head_convs=head_convs)
    network = small_network(train, dataclasses.replace(RCA, aggregation=aggregation))
    maps = network(images())
    weights, learning = torch.randn(2, 3), [p for p in network.parameters() if p.requires_grad]
    for scores, whole in ((maps.coarse_scores, maps.coarse), (maps.refined_scores, maps.refined)):
        torch.testing.assert_close(scores, whole.mean((2, 3)), atol=1e-5, rtol=1e-4)
        one, two = (
            torch.autograd.grad((weights * found).sum(), learning, retain_graph=True, allow_unused=True)
            for found in (scores, whole.mean((2, 3)))
        )
        for gradient, expected in zip(one, two, strict=True):
            assert (gradient is None) == (expected is None)
            if gradient is not None and expected is not None:
                torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


def test_refined_map_can_be_had_in_half_precision_too() -> None:
    network = small_network()
    whole = network(images())
    with torch.autocast("cpu", torch.bfloat16):
        half = network(images())
    half.refined_scores.float().sum().backward()
    torch.testing.assert_close(half.refined.float(), whole.refined, atol=0.05, rtol=0.1)
    torch.testing.assert_close(half.refined_scores.float(), whole.refined_scores, atol=0.05, rtol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("attended", [0, 1])
def test_one_image_equals_the_same_image_in_a_batch(attended: int) -> None:
    network = small_network(rca=dataclasses.replace(RCA, attended=attended))
    together = network(images(3))
    for i in range(3):
        alone = network(images(3)[i : i + 1])
        assert together.entries is not None and torch.equal(alone.entries[0], together.entries[i])
        for field in ("features", "coarse", "refined", "coarse_scores", "refined_scores", "attention"):
            one, many = getattr(alone, field), getattr(together, field)[i : i + 1]
            torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_refined_map_uses_the_stored_prototypes() -> None:
    network, empty = small_network(), small_network(fill=False)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, empty.get_parameter(name))
    filled, bare = network(images()), empty(images())
    assert torch.equal(filled.coarse, bare.coarse)
    assert not torch.allclose(filled.refined, bare.refined)
    assert bare.attention is not None and not bare.attention.any()


@torch.no_grad()
def test_without_aggregation_the_refined_map_is_the_coarse_one() -> None:
    network = small_network(rca=dataclasses.replace(RCA, aggregation=False))
    maps = network(images())
    assert maps.attention is None and torch.equal(maps.refined, maps.coarse)
    assert not hasattr(network, "refined_head")


def test_prototypes_are_refreshed_from_written_slots_alone() -> None:
    network, bank = small_network(fill=False), Bank(4, 8, 6)
    bank.write(torch.eye(6)[:2], torch.tensor([2, 2]))
    network.refresh_prototypes(bank, torch.Generator().manual_seed(0))
    assert network.exists.tolist() == [[False, False], [False, False], [True, True], [False, False]]
    assert sorted(network.prototypes[2].tolist()) == sorted(torch.eye(6)[:2].tolist())
    assert not network.prototypes[[0, 1, 3]].any()


def test_head_and_neck_follow_the_settings() -> None:
    plain = small_network(dataclasses.replace(TRAIN, neck=0, head_convs=2), fill=False)
    assert isinstance(plain.neck, nn.Identity) and plain.channels == plain.backbone.channels == 96
    convs = [layer.kernel_size for layer in plain.coarse_head if isinstance(layer, nn.Conv2d)]
    assert convs == [(3, 3), (3, 3), (1, 1)]
    assert plain(images()).coarse.shape == (2, 3, 3, 4)  # 3x3 convolutions keep the map's size


def test_every_layer_is_either_new_or_the_backbone() -> None:
    network = small_network()
    new = {id(parameter) for layer in network.new_layers() for parameter in layer.parameters()}
    old = {id(parameter) for parameter in network.backbone.parameters()}
    assert not new & old
    assert new | old == {id(parameter) for parameter in network.parameters()}


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norms_stay_frozen_after_train(frozen: bool) -> None:
    network = small_network(dataclasses.replace(TRAIN, freeze_batch_norm=frozen))
    assert network.train() is network and network.training
    norms = [layer for layer in network.backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [layer.running_mean.clone() for layer in norms if layer.running_mean is not None]
    network(images()).refined.sum().backward()
    kept = [torch.equal(layer.running_mean, mean) for layer, mean in zip(norms, before, strict=True)]  # type: ignore[arg-type]
    assert norms and set(kept) == {frozen}
    assert all((layer.weight.grad is None) == frozen for layer in norms)


def test_frozen_stages_and_prototypes_do_not_learn() -> None:
    network = small_network(dataclasses.replace(TRAIN, freeze_stride=4)).train()
    network(images()).refined.sum().backward()
    learning = {name.split(".")[2] for name, p in network.named_parameters() if p.grad is not None and "model" in name}
    assert learning == {"layer2", "layer3", "layer4"}
    assert network.refined_head.weight.grad is not None and network.refined_head.weight.grad.any()
    assert not network.prototypes.requires_grad


@torch.no_grad()
def test_saved_and_restored_network_gives_identical_maps(tmp_path: Path) -> None:
    network = small_network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = Settings(train=TRAIN, rca=RCA).to_dict()
    about = {"classes": ["ant", "bee", "cat"], "train": plain["train"], "rca": plain["rca"]}
    save_tensors(tmp_path / "network.safetensors", network.state_dict(), about)
    restored, classes = load_network(tmp_path, torch.device("cpu"))
    assert classes == ("ant", "bee", "cat") and not restored.training
    before, after = network(images()), restored(images())
    for field in ("features", "coarse", "refined", "attention"):
        assert torch.equal(getattr(before, field), getattr(after, field)), field


def test_network_that_is_not_there_or_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"network.safetensors: missing or damaged"):
        load_network(tmp_path, torch.device("cpu"))
    plain = Settings(train=dataclasses.replace(TRAIN, neck=7), rca=RCA).to_dict()
    about = {"classes": ["ant", "bee", "cat"], "train": plain["train"], "rca": plain["rca"]}
    save_tensors(tmp_path / "network.safetensors", small_network().state_dict(), about)
    with pytest.raises(RunError, match=r"network.safetensors: does not fit the network"):
        load_network(tmp_path, torch.device("cpu"))


@torch.no_grad()
def test_bank_holds_both_layers_and_cells_find_prototypes_by_the_earlier_one() -> None:
    network = small_network(rca=dataclasses.replace(RCA, layer="layer3"))
    assert (network.keys, network.channels) == (192, 192 + 6)
    maps = network(images())
    earlier, last = maps.features[:, :192], maps.features[:, 192:]
    behind, before = network.backbone.with_earlier(images())
    torch.testing.assert_close(earlier, F.normalize(before, dim=1))
    torch.testing.assert_close(last, F.normalize(network.neck(behind), dim=1))
    attention = attend(earlier, network.prototypes[..., :192], network.exists, 0.5)
    torch.testing.assert_close(maps.attention, attention)
    image, tag = torch.tensor([0, 1]), torch.tensor([1, 3])
    network.prototypes[..., 192:] = torch.rand(network.prototypes[..., 192:].shape)
    shares = attention.sum(2)
    own = shares[image, tag] / (shares[image, tag] + shares[image, 0])
    torch.testing.assert_close(network.posterior(maps.features, image, tag), own)


@torch.no_grad()
def test_regions_are_mined_by_the_settings_rule() -> None:
    tags = torch.tensor([[True, False, True], [False, False, True]])
    for rule in ("posterior", "peak", "softmax-mean"):
        network = small_network(rca=dataclasses.replace(RCA, region_rule=rule, confidence=0.0))
        maps = network(images())
        image, column = tags.nonzero(as_tuple=True)
        shares = network.posterior(maps.features, image, column + 1) if rule == "posterior" else None
        expected = mine_regions(maps.coarse, tags, rule, confidence=0.0, shares=shares)
        found = network.mine(maps, tags)
        assert torch.equal(found.cells, expected.cells) and torch.equal(found.label, expected.label)
