"""Optimisers, the learning rate's schedule, and how many epochs a training takes."""

import logging
import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

log = logging.getLogger(__name__)


def build_optimizer(
    pretrained: Iterable[nn.Parameter],
    new: Iterable[nn.Parameter],
    lr: float,
    head_lr: float,
    weight_decay: float,
    kind: Literal["sgd", "adamw"] = "sgd",
    bias_lr: float = 1.0,
) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum 0.9, or AdamW; new layers learn `head_lr` times faster, biases and norms
    `bias_lr` times faster than their layer's weights, and without decay."""
    groups = []
    for parameters, factor in ((pretrained, 1.0), (new, head_lr)):
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        groups.append({"params": [p for p in learning if p.dim() > 1], "factor": factor, "weight_decay": weight_decay})
        flat = [p for p in learning if p.dim() <= 1]
        groups.append({"params": flat, "factor": factor * bias_lr, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


def poly(progress: float) -> float:
    """Return the learning rate's factor at `progress` 0..1 through the training: (1 - progress) ^ 0.9."""
    return float((1 - progress) ** 0.9)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to `lr` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def enough_epochs(asked: int, images: int, batch: int, steps: int) -> int:
    """Return `asked`, or where that is 0 as many epochs as make about `steps` batches, from 3 to 60."""
    if asked:
        return asked
    chosen = min(max(round(steps / math.ceil(images / batch)), 3), 60)
    log.info("%d epochs of %d images: about %d steps", chosen, images, chosen * math.ceil(images / batch))
    return chosen
