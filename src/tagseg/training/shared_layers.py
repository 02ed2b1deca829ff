"""Layers that see more than one image (batch norm, dropout) in several processes: they compute what a single process
computes from the whole batch."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tagseg.training.distributed import Group


def join_network(network: nn.Module, group: Group) -> nn.Module:
    """Return the network as training must call it: its gradients are summed over all processes, and its batch norms and
    dropout see the whole batch."""
    if group.world_size == 1:
        return network
    share_layers(network, group)
    return group.wrap(network)


def share_layers(network: nn.Module, group: Group) -> None:
    """Let a network's batch norms compute their statistics from the images of all processes, and its dropout draw for
    all of them; names, weights and buffers do not change.

    PyTorch's SyncBatchNorm does not work on CPUs, and would count the image of a process that has none of its own.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = partial(_batch_norm, module, group)  # type: ignore[method-assign]
        elif isinstance(module, nn.Dropout | nn.Dropout2d) and module.p > 0:
            module.forward = partial(_dropout, module, group)  # type: ignore[method-assign]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _batch_norm(module: nn.BatchNorm2d, group: Group, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    if not module.training:
        frozen: Tensor = type(module).forward(module, x)
        return frozen
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    own = values[: group.share.own]
    count = group.share.total * values.shape[2] * values.shape[3]
    mean = _sum(own.sum((0, 2, 3)), group) / count
    variance = _sum((own - mean[:, None, None]).square().sum((0, 2, 3)), group) / count
    _track(module, mean.detach(), variance.detach() * count / max(count - 1, 1))
    normal = (values - mean[:, None, None]) * (variance + module.eps).rsqrt()[:, None, None]
    if module.affine:
        normal = normal * module.weight[:, None, None] + module.bias[:, None, None]
    normal = normal.to(x.dtype)
    # timm's own batch norms include the activation.
    after: Any = module
    return after.act(after.drop(normal)) if hasattr(module, "act") else normal


@torch.no_grad()
def _track(module: nn.BatchNorm2d, mean: Float[Tensor, "d"], variance: Float[Tensor, "d"]) -> None:
    if module.running_mean is None or module.running_var is None or module.num_batches_tracked is None:
        return
    module.num_batches_tracked.add_(1)
    share = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
    module.running_mean.lerp_(mean, share)
    module.running_var.lerp_(variance, share)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _dropout(module: nn.Module, group: Group, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    if not module.training:
        return x
    share = group.share
    whole = torch.ones_like(x[:1]).expand(share.total, *x.shape[1:])
    wide = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    ordered = whole.contiguous(memory_format=torch.channels_last if wide else torch.contiguous_format)
    # All processes draw the same: what one process draws for the whole batch, in the order of its memory.
    kept: Tensor = type(module).forward(module, ordered)
    return x * kept[share.first : share.first + share.own] if share.own else x * kept[:1]


def _sum(values: Float[Tensor, "d"], group: Group) -> Float[Tensor, "d"]:
    total: Tensor = _Sum.apply(values, group)
    return total


class _Sum(torch.autograd.Function):
    """The sum over processes. Its gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, values: Float[Tensor, "d"], group: Group) -> Float[Tensor, "d"]:
        ctx.group = group
        return group.all_reduce(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "d"]) -> tuple[Float[Tensor, "d"], None]:
        return ctx.group.all_reduce(gradient), None
