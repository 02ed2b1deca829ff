"""The training loop of both networks: epochs of steps, and a state that lets a stopped training resume exactly."""

import contextlib
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tagseg.errors import RunError
from tagseg.system.progress import Track, silent
from tagseg.system.records import Amount, Positive, Record, record_values
from tagseg.system.signals import delay_signals
from tagseg.system.untrusted import shown
from tagseg.training.checkpoint import (
    CHECKPOINT,
    as_record,
    load_tensors,
    optimizer_tensors,
    restore,
    restore_optimizer,
    save_tensors,
    select,
)
from tagseg.training.distributed import ALONE, Group
from tagseg.training.loading import epoch_seed, loader
from tagseg.training.optimizer import set_lr

log = logging.getLogger(__name__)

History = list[dict[str, int | float]]
Sums = dict[str, float]


@dataclass(frozen=True)
class Training:
    """A network in training: where, what, for how long and on which data.

    Attributes:
        name: what progress reports call it: its section of the settings.
        folder: where its state is saved until it has finished.
        modules: the modules whose state is saved, by name: `network`, and what else changes during training.
        optimizer: the optimiser of the network.
        lr: returns the learning rate in an epoch (from 1), given the share of its steps that are done.
        epochs: how many epochs it takes.
        batch: images per batch.
        seed: what is random in an epoch depends on this seed and the epoch's number only.
        accumulate: batches per step of the optimiser.
        workers: processes that read images.
        group: the processes that train together; all of them read the state, and the main one saves it.
        track: how to report progress.
    """

    name: str
    folder: Path
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    lr: Callable[[int, float], float]
    epochs: int
    batch: int
    seed: int
    accumulate: int = 1
    workers: int = 0
    group: Group = ALONE
    track: Track = silent


@dataclass(frozen=True)
class Epoch:
    """What one epoch of a training does.

    Attributes:
        images: the data set of the epoch.
        step: learns from the batches of a step, given the number of steps in the epoch, and returns figures, `loss`
            among them; the epoch sums them up. It sets no learning rate.
        figures: turns these sums into the epoch's line of the history, `loss` among them.
        generators: random generators that the steps use in addition to PyTorch's own.
        keep: saves what else the epoch has changed, when it is left before its end.
    """

    images: Dataset[Any]
    step: Callable[[Iterator[Any], int], Sums]
    figures: Callable[[Sums], Sums] = dict
    generators: tuple[torch.Generator, ...] = ()
    keep: Callable[[], None] = lambda: None


OpenEpoch = Callable[[int, int, bool], contextlib.AbstractContextManager[Epoch]]
"""Begins an epoch, given its number, its seed, and whether it resumes after some of its steps."""


class Partway(msgspec.Struct, frozen=True):
    """An epoch that was left before its end: the number of steps that are done, their sums and their seconds."""

    done: Positive
    sums: Sums
    seconds: Amount


class TrainingState(Record, frozen=True, omit_defaults=True):
    """The metadata of checkpoint.safetensors: the figures of the finished epochs, and the unfinished one."""

    history: tuple[dict[str, int | float], ...]
    partway: Partway | None = None

    def __post_init__(self) -> None:
        if [row.get("epoch") for row in self.history] != list(range(1, len(self.history) + 1)):
            raise ValueError("history: its epochs are not 1, 2, 3 and so on")
        for row in self.history:
            if not all(key.isidentifier() for key in row):
                raise ValueError(f"history: {shown(list(row))}, expected names of figures")


@dataclass
class _State:
    """What is saved of a training besides its tensors: the finished epochs, and for an epoch that was left early the
    number of finished steps, their sums, their seconds and the states of the random generators."""

    history: History
    done: int
    sums: Sums
    seconds: float
    random: dict[str, Tensor]


def run_epochs(training: Training, open_epoch: OpenEpoch) -> History:
    """Train until all epochs are done, saving the state after each; resume from the saved state, if there is one.

    At Ctrl-C or SIGTERM, in any process of the group, the current step is finished and the state saved; then the signal
    takes effect.

    Raises:
        RunError: when the saved state is damaged or differs between processes, or the loss is not a number any more.
    """
    state = _restore(training)
    with delay_signals() as came:
        for epoch in range(len(state.history) + 1, training.epochs + 1):
            began = time.monotonic() - state.seconds
            figures = _run_epoch(training, open_epoch, state, epoch, began, came)
            if not math.isfinite(figures["loss"]):
                raise RunError(
                    f"{training.folder}: the loss became {figures['loss']} in epoch {epoch}; lower --{training.name}.lr"
                )
            row = {"epoch": epoch, **figures, "seconds": round(time.monotonic() - began, 1)}
            log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
            state = _State([*state.history, row], 0, {}, 0.0, {})
            _save(training, state)
            if training.group.any(came()):
                raise KeyboardInterrupt
    return state.history


def _run_epoch(
    training: Training, open_epoch: OpenEpoch, state: _State, epoch: int, began: float, came: Callable[[], bool]
) -> Sums:
    """Run the steps of an epoch that are left, and return its figures."""
    group, optimizer, per_step = training.group, training.optimizer, training.accumulate
    seed = epoch_seed(training.seed, epoch)
    torch.manual_seed(seed)
    with open_epoch(epoch, seed, state.done > 0) as current:
        batches = loader(current.images, training.batch, training.workers, seed, state.done * per_step, group)
        steps = state.done + -(-len(batches) // per_step)
        title = f"{training.name}, epoch {epoch}/{training.epochs}"
        tracked = iter(training.track(group.batches(batches), title, len(batches)))
        training.modules["network"].train()
        if state.done:
            _restore_random(state.random, current.generators)
        sums = dict(state.sums)
        for step in range(state.done, steps):
            set_lr(optimizer, training.lr(epoch, step / steps))
            for name, value in current.step(itertools.islice(tracked, per_step), steps).items():
                sums[name] = sums.get(name, 0.0) + value
            if group.any(not math.isfinite(sums.get("loss", 0.0))):
                raise RunError(
                    f"{training.folder}: the loss became {sums['loss']} at step {step + 1} of epoch {epoch}; lower "
                    f"--{training.name}.lr (its rate was {optimizer.param_groups[0]['lr']:.3g} there) and run the same "
                    "command again with --force"
                )
            sums["lr"] = optimizer.param_groups[0]["lr"]
            if group.any(came()):
                current.keep()
                random = _random_states(current.generators)
                _save(training, _State(state.history, step + 1, sums, time.monotonic() - began, random))
                log.info("asked to end: saved the state after step %d of epoch %d", step + 1, epoch)
                raise KeyboardInterrupt
        deque(tracked, maxlen=0)  # nothing is left, but progress is reported when it ends
        return current.figures(sums)


def _restore(training: Training) -> _State:
    """Load the saved state, if there is one, into the modules and the optimiser."""
    file, group = training.folder / CHECKPOINT, training.group
    tensors, about = load_tensors(file) if file.exists() else ({}, {"history": []})
    saved = as_record(about, TrainingState, file)
    history, partway = list(saved.history), saved.partway
    done, sums, seconds = (partway.done, partway.sums, partway.seconds) if partway else (0, {}, 0.0)
    state = _State(history, done, sums, seconds, select(tensors, "random"))
    if tensors:
        for name, module in training.modules.items():
            restore(module, select(tensors, name), file)
        restore_optimizer(training.optimizer, tensors, file)
        place = f"step {state.done} of epoch {len(history) + 1}" if state.done else f"epoch {len(history)}"
        log.info("resuming after %s of %d", place, training.epochs)
    for number in (len(history), state.done):
        if group.broadcast_int(number) != number:
            raise RunError(f"{file}: differs from the main process's; all machines must see the same run folder")
    return state


def _save(training: Training, state: _State) -> None:
    """Save the state; of several processes the main one does so, and the others wait for it."""
    if training.group.is_main:
        tensors = {
            f"{name}.{key}": value
            for name, module in training.modules.items()
            for key, value in module.state_dict().items()
        }
        tensors |= optimizer_tensors(training.optimizer)
        tensors |= {f"random.{name}": value for name, value in state.random.items()}
        partway = Partway(state.done, state.sums, state.seconds) if state.done else None
        about = TrainingState(tuple(state.history), partway)
        save_tensors(training.folder / CHECKPOINT, tensors, record_values(about))
    training.group.broadcast_int()


def _random_states(generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """Return the states of PyTorch's own generators, on the CPU and on GPUs in use, and of others."""
    states = {f"generator{i}": generator.get_state() for i, generator in enumerate(generators)}
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return states | {"cpu": torch.get_rng_state()} | {f"cuda{i}": state for i, state in enumerate(gpus)}


def _restore_random(states: dict[str, Tensor], generators: Sequence[torch.Generator]) -> None:
    try:
        for i, generator in enumerate(generators):
            generator.set_state(states[f"generator{i}"])
        torch.set_rng_state(states["cpu"])
        gpus = [states[f"cuda{i}"] for i in range(torch.cuda.device_count()) if f"cuda{i}" in states]
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
    except (KeyError, TypeError, RuntimeError) as error:
        raise RunError(f"the saved state of the random generators is damaged ({error}); start again") from error
