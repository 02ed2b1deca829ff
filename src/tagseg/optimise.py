"""What both trainings share: device, optimiser, the learning rate's schedule, and epochs that can be resumed."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tagseg.checkpoint import (
    CHECKPOINT,
    load_tensors,
    optimizer_tensors,
    restore,
    restore_optimizer,
    save_tensors,
    select,
)
from tagseg.rca.backbone import RANDOM
from tagseg.run import RunError
from tagseg.stopping import postponed
from tagseg.untrusted import check_shape, shown

log = logging.getLogger(__name__)

History = list[dict[str, int | float]]
Sums = dict[str, float]


class Steps(NamedTuple):
    """The steps of an epoch, which can be left behind any of them and taken up there by another process.

    `done` of them lie behind, and have summed up `sums`. `begin(generators)` is called when the epoch has seeded what
    is random in it, `end(done, sums, generators, keep)` behind every step: when the process was asked to end, it calls
    `keep`, which saves what else the epoch has changed, saves the rest and leaves the epoch with KeyboardInterrupt.
    """

    done: int
    sums: Sums
    begin: Callable[[Sequence[torch.Generator]], None]
    end: Callable[[int, Sums, Sequence[torch.Generator], Callable[[], None]], None]


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: when torch does not know the name or the device is not there.
    """
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
    one_epoch: Callable[[int, Steps], dict[str, float]],
) -> History:
    """Run epochs 1 to `total`, saving the state after each; continue where the saved state was left, if there is one.

    `one_epoch(epoch, steps)` trains and returns figures for the history, `loss` among them. At Ctrl-C or SIGTERM the
    step is finished and the state saved, then the signal takes its effect.

    Raises:
        RunError: when the saved state is damaged, or the loss stops being a number.
    """
    file = folder / CHECKPOINT
    tensors, about = load_tensors(file) if file.exists() else ({}, {"history": []})
    history = _history(about, file)
    partway: dict[str, Any] = about.get("partway", {})
    if tensors:
        for name, module in modules.items():
            restore(module, select(tensors, name), file)
        restore_optimizer(optimizer, tensors, file)
        within = f"step {partway['done']} of epoch {len(history) + 1}" if partway else f"epoch {len(history)}"
        log.info("continuing behind %s of %d", within, total)

    def save(more: dict[str, Tensor], partway: dict[str, Any]) -> None:
        state = {f"{name}.{key}": value for name, one in modules.items() for key, value in one.state_dict().items()}
        save_tensors(file, state | optimizer_tensors(optimizer) | more, {"history": history} | partway)

    with postponed() as asked:
        for epoch in range(len(history) + 1, total + 1):
            started = time.monotonic() - partway.get("seconds", 0.0)
            figures = one_epoch(epoch, _steps(partway, select(tensors, "random"), started, asked, save))
            if not math.isfinite(figures["loss"]):
                raise RunError(
                    f"{folder}: the loss became {figures['loss']} in epoch {epoch}; lower the learning rate (lr)"
                )
            history.append({"epoch": epoch, **figures, "seconds": round(time.monotonic() - started, 1)})
            log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in history[-1].items()))
            save({}, {})
            partway, tensors = {}, {}
            if asked():
                break
    return history


def _steps(
    partway: dict[str, Any],
    states: dict[str, Tensor],
    started: float,
    asked: Callable[[], bool],
    save: Callable[[dict[str, Tensor], dict[str, Any]], None],
) -> Steps:
    """The steps of an epoch that was left `partway`, with `states` of what is random, or of one that begins."""

    def begin(generators: Sequence[torch.Generator]) -> None:
        if partway:
            try:
                _restore_random(states, generators)
            except (KeyError, TypeError, RuntimeError) as error:
                raise RunError(f"the saved state of what is random is damaged ({error}); start again") from error

    def end(done: int, sums: Sums, generators: Sequence[torch.Generator], keep: Callable[[], None]) -> None:
        if asked():
            keep()
            seconds = time.monotonic() - started
            random = {f"random.{name}": state for name, state in _random(generators).items()}
            save(random, {"partway": {"done": done, "sums": sums, "seconds": seconds}})
            log.info("asked to end: saved behind step %d of the epoch", done)
            raise KeyboardInterrupt

    return Steps(partway.get("done", 0), partway.get("sums", {}), begin, end)


def _random(generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """The states of torch's own generators, on the CPU and on GPUs in use, and of others."""
    states = {f"generator{i}": generator.get_state() for i, generator in enumerate(generators)}
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return states | {"cpu": torch.get_rng_state()} | {f"cuda{i}": state for i, state in enumerate(gpus)}


def _restore_random(states: dict[str, Tensor], generators: Sequence[torch.Generator]) -> None:
    for i, generator in enumerate(generators):
        generator.set_state(states[f"generator{i}"])
    torch.set_rng_state(states["cpu"])
    gpus = [states[f"cuda{i}"] for i in range(torch.cuda.device_count()) if f"cuda{i}" in states]
    if gpus:
        torch.cuda.set_rng_state_all(gpus)


def _history(about: dict[str, Any], source: Path) -> History:
    try:
        check_shape(about, {"history": [{"epoch": int}], "partway?": {"done": int, "sums": dict, "seconds": float}})
        if [row["epoch"] for row in about["history"]] != list(range(1, len(about["history"]) + 1)):
            raise ValueError("its epochs are not 1, 2, 3 and so on")
        for row in about["history"]:
            if not all(key.isidentifier() and isinstance(value, int | float) for key, value in row.items()):
                raise ValueError(f"its history has {shown(row)}, expected numbers")
    except ValueError as error:
        raise RunError(f"{source}: damaged ({error})") from error
    history: History = about["history"]
    return history
