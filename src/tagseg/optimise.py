"""What both trainings share: device, optimiser, the learning rate's schedule, and epochs that can be resumed."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from tagseg.checkpoint import load_tensors, optimizer_tensors, restore, restore_optimizer, save_tensors, select
from tagseg.ranks import ALONE, Ranks
from tagseg.rca.backbone import RANDOM
from tagseg.run import RunError

log = logging.getLogger(__name__)

History = list[dict[str, int | float]]


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """Return the device called `name`; `auto` takes CUDA, then Apple's MPS, then the CPU. Of several processes each has
    its own.

    Raises:
        ValueError: when torch does not know the name or the device is not there.
    """
    if ranks.device is not None:
        return ranks.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"--device {name}: not available here ({str(error).splitlines()[0]}); try auto or cpu"
        ) from error
    return device


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


def compile_network(network: nn.Module, on: bool) -> None:
    """Let torch.compile translate a network when it is first called, in place and if it is `on`.

    Raises:
        ValueError: when torch.compile does not work here.
    """
    if not on:
        return
    device = next(network.parameters()).device
    try:
        torch.compile(torch.sin)(torch.zeros(2, device=device))
    except Exception as error:  # whatever its compilers raise where there are none
        raise ValueError(
            f"setting compile: torch.compile does not work here ({str(error).splitlines()[0][:200]}); leave it out"
        ) from error
    network.compile()


def warn_if_random(name: str, weights: str) -> None:
    """Say aloud that a network starts without pretrained weights."""
    if weights == RANDOM:
        log.warning("%s starts from random weights (weights = random): it learns everything from your images", name)


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


def epochs(
    folder: Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    total: int,
    one_epoch: Callable[[int], dict[str, float]],
    ranks: Ranks = ALONE,
) -> History:
    """Run epochs 1 to `total`, saving the state after each; continue behind the last finished one if there is a state.

    Of several processes all read the state, and the main one saves it.

    `one_epoch(epoch)` trains and returns figures for the history, `loss` among them.

    Raises:
        RunError: when the saved state is damaged or not the same for all processes, or the loss stops being a number.
    """
    file = folder / "checkpoint.safetensors"
    history: History = []
    if file.exists():
        tensors, about = load_tensors(file)
        for name, module in modules.items():
            restore(module, select(tensors, name), file)
        restore_optimizer(optimizer, tensors)
        history = about["history"]
        log.info("continuing behind epoch %d of %d", len(history), total)
    if ranks.agree(len(history)) != len(history):
        raise RunError(f"{file}: not what the main process sees; all machines must see the same run folder")
    for epoch in range(len(history) + 1, total + 1):
        started = time.monotonic()
        figures = one_epoch(epoch)
        if not math.isfinite(figures["loss"]):
            raise RunError(
                f"{folder}: the loss became {figures['loss']} in epoch {epoch}; lower the learning rate (lr)"
            )
        history.append({"epoch": epoch, **figures, "seconds": round(time.monotonic() - started, 1)})
        log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in history[-1].items()))
        if ranks.main:
            _save(file, modules, optimizer, history)
    return history


def _save(file: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, history: History) -> None:
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    save_tensors(file, tensors | optimizer_tensors(optimizer), {"history": history})
