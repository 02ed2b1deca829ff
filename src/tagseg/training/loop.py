"""What both trainings share: device, optimiser, the learning rate's schedule, and epochs that can be resumed."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tagseg.errors import RunError
from tagseg.system.signals import delay_signals
from tagseg.system.untrusted import check_shape, shown
from tagseg.training.checkpoint import (
    CHECKPOINT,
    load_tensors,
    optimizer_tensors,
    restore,
    restore_optimizer,
    save_tensors,
    select,
)
from tagseg.training.distributed import ALONE, Ranks

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


def epochs(
    folder: Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    total: int,
    one_epoch: Callable[[int, Steps], dict[str, float]],
    ranks: Ranks = ALONE,
) -> History:
    """Run epochs 1 to `total`, saving the state after each; continue where the saved state was left, if there is one.

    Of several processes all read the state, and the main one saves it.

    `one_epoch(epoch, steps)` trains and returns figures for the history, `loss` among them. At Ctrl-C or SIGTERM, in
    whichever process, the step is finished and the state saved, then the signal takes its effect.

    Raises:
        RunError: when the saved state is damaged or not the same for all processes, or the loss stops being a number.
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
    reached = [len(history), partway.get("done", 0)]
    if [ranks.agree(number) for number in reached] != reached:
        raise RunError(f"{file}: not what the main process sees; all machines must see the same run folder")

    def save(more: dict[str, Tensor], partway: dict[str, Any]) -> None:
        if not ranks.main:
            return
        state = {f"{name}.{key}": value for name, one in modules.items() for key, value in one.state_dict().items()}
        save_tensors(file, state | optimizer_tensors(optimizer) | more, {"history": history} | partway)

    with delay_signals() as came:

        def asked() -> bool:
            return ranks.any(came())

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
