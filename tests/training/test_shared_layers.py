"""Batch norms and dropout of several processes against PyTorch's own, which see the whole batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from tagseg.training.distributed import ALONE, open_group, share_of
from tagseg.training.shared_layers import share_layers

Together = Callable[..., list[Any]]


def network() -> nn.Sequential:
    """Batch norms of every kind between convolutions, and dropout."""
    torch.manual_seed(5)
    layers = [
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.4),
        nn.Conv2d(4, 6, 1), BatchNormAct2d(6), nn.Dropout2d(0.3),
        nn.Conv2d(6, 2, 1), nn.BatchNorm2d(2, affine=False, momentum=None),
    ]  # fmt: skip
    return nn.Sequential(*layers).double().train()


def batch(images: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    pictures = torch.rand(images, 3, 5, 6, dtype=torch.float64, generator=generator)
    return pictures.contiguous(memory_format=torch.channels_last)


def loss_of(scores: Tensor, first: int) -> Tensor:
    """A loss in which every image counts in its own way."""
    return (scores * torch.arange(first + 1, first + 1 + len(scores)).view(-1, 1, 1, 1)).pow(3).sum()


def learned(images: int, steps: int = 2) -> dict[str, list[float]]:
    """Sums over processes of losses and gradients of steps, and the batch norms' statistics after them."""
    found: dict[str, list[float]] = {}
    with open_group("cpu") as group:
        net, pictures = network(), batch(images)
        if group.world_size > 1:
            share_layers(net, group)
        group.share = share_of(images, group.rank, group.world_size)
        own = slice(group.share.first, group.share.first + group.share.own)
        torch.manual_seed(3)
        for _ in range(steps):
            seen = net(pictures[own] if group.share.own else pictures[:1])
            loss_of(group.own(seen)[0], group.share.first).backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            found[name] = group.sum(*parameter.grad.flatten().tolist())
        found |= {name: value.flatten().tolist() for name, value in net.named_buffers()}
        net.eval()
        found["evaluated"] = net(pictures).flatten().tolist()
    return found


@pytest.mark.parametrize(("count", "images"), [(2, 5), (4, 6), (4, 3)])
def test_shares_of_a_batch_make_what_the_whole_does(count: int, images: int, together: Together) -> None:
    whole = learned(images)
    outcomes = together(count, learned, images)
    for outcome in outcomes:
        assert outcome.keys() == whole.keys()
        for name, values in whole.items():
            assert outcome[name] == pytest.approx(values, rel=1e-9, abs=1e-9), name
    buffers = [{name: outcome[name] for name, _ in network().named_buffers()} for outcome in outcomes]
    assert all(one == buffers[0] for one in buffers)  # to the bit


def test_names_and_values_stay() -> None:
    net, plain = network(), network()
    share_layers(net, ALONE)
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(net.eval()(batch(2)), plain.eval()(batch(2)))
