import contextlib
import itertools
import json
import logging
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tagseg.errors import RunError
from tagseg.networks.backbones import warn_if_random
from tagseg.system.signals import Terminated, raised
from tagseg.training.checkpoint import load_tensors, save_tensors
from tagseg.training.device import choose_device
from tagseg.training.loop import Epoch, Sums, Training, run_epochs
from tagseg.training.optimizer import build_optimizer, enough_epochs, poly, set_lr


def test_choose_device() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    for name in ("toaster", "cuda:99"):
        with pytest.raises(ValueError, match=rf"--device {name}: not available here \(.+\); try auto or cpu"):
            choose_device(name)


def test_poly_by_hand() -> None:
    assert poly(0.0) == 1
    assert poly(0.5) == pytest.approx(0.535887, abs=1e-6)
    assert poly(1.0) == 0


def test_new_layers_learn_faster_and_biases_do_not_decay() -> None:
    old, new = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), nn.Conv2d(2, 2, 1)
    frozen = nn.Linear(1, 1).requires_grad_(False)
    optimizer = build_optimizer([*old.parameters(), *frozen.parameters()], new.parameters(), 0.1, 10.0, 0.5)
    set_lr(optimizer, 0.2)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    linear, norm = old
    assert found == {
        id(linear.weight): (pytest.approx(0.2), 0.5),
        id(linear.bias): (pytest.approx(0.2), 0.0),
        id(norm.weight): (pytest.approx(0.2), 0.0),
        id(norm.bias): (pytest.approx(0.2), 0.0),
        id(new.weight): (pytest.approx(2.0), 0.5),
        id(new.bias): (pytest.approx(2.0), 0.0),
    }
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_biases_and_norms_may_learn_faster_than_their_layer() -> None:
    old, new = nn.Linear(3, 2), nn.Conv2d(2, 2, 1)
    optimizer = build_optimizer(old.parameters(), new.parameters(), 0.1, 10.0, 0.5, bias_lr=2.0)
    set_lr(optimizer, 0.1)
    found = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert found == pytest.approx({id(old.weight): 0.1, id(old.bias): 0.2, id(new.weight): 1.0, id(new.bias): 2.0})


def test_a_step_by_hand() -> None:
    """Nesterov: the first step moves by lr (g + 0.9 g), the weight with its decay, the bias without."""
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 2.0)
    nn.init.constant_(layer.bias, 3.0)
    optimizer = build_optimizer([], layer.parameters(), 0.1, 2.0, 0.5)
    set_lr(optimizer, 0.1)
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert layer.weight.item() == pytest.approx(2.0 - 0.2 * 1.9 * (1 + 0.5 * 2.0))
    assert layer.bias.item() == pytest.approx(3.0 - 0.2 * 1.9)


def test_everything_but_the_new_layers_may_be_frozen() -> None:
    old, new = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    optimizer = build_optimizer(old.parameters(), new.parameters(), 0.1, 10.0, 0.0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_a_random_start_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_if_random("resnet50", "timm")
        warn_if_random("resnet50", "some.safetensors")
        assert caplog.text == ""
        warn_if_random("resnet50", "random")
    assert "resnet50 starts from random weights" in caplog.text


class Learner:
    """A network of one layer that learns a little in every epoch of three random steps. It can be stopped in an epoch,
    or by a signal in the second step of an epoch."""

    def __init__(
        self, stop_in: int = 0, broken_in: int = 0, signal_in: tuple[int, signal.Signals] | None = None
    ) -> None:
        torch.manual_seed(0)
        self.net, self.stop_in, self.broken_in, self.signal_in = nn.Linear(2, 1), stop_in, broken_in, signal_in
        self.optimizer = build_optimizer([], self.net.parameters(), 0.1, 1.0, 0.0)
        self.seen: list[int] = []
        self.kept = 0

    def keep(self) -> None:
        self.kept += 1

    @contextlib.contextmanager
    def open_epoch(self, epoch: int, seed: int, resumed: bool) -> Iterator[Epoch]:
        self.seen.append(epoch)
        if epoch == self.stop_in:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(epoch)
        steps_left = itertools.count(1 if resumed else 2, -1)

        def step(batches: Iterator[Any], steps: int) -> Sums:
            ((batch,),) = batches
            assert steps == 3 and batch.shape == (1,)
            self.optimizer.zero_grad()
            loss = self.net(torch.rand(1, 2) + torch.rand(1, 2, generator=generator)).square().sum()
            loss.backward()
            self.optimizer.step()
            if next(steps_left) == 1 and self.signal_in and epoch == self.signal_in[0]:
                signal.raise_signal(self.signal_in[1])
            return {"loss": loss.item()}

        def figures(sums: Sums) -> Sums:
            return {"loss": math.nan if epoch == self.broken_in else sums["loss"], "other": float(epoch)}

        yield Epoch(TensorDataset(torch.arange(3)), step, figures, (generator,), self.keep)

    def run(self, folder: Path, total: int) -> list[dict[str, float]]:
        training = Training(
            "train", folder, {"network": self.net}, self.optimizer, lambda epoch, progress: 0.1 / epoch, total, 1, 7
        )
        return run_epochs(training, self.open_epoch)


def losses(history: list[dict[str, float]]) -> list[float]:
    return [row["loss"] for row in history]


@pytest.mark.parametrize("stop_in", [1, 2, 3])
def test_interrupted_epochs_continue_as_if_undisturbed(stop_in: int, tmp_path: Path) -> None:
    undisturbed = Learner()
    history = undisturbed.run(tmp_path / "one", 3)
    assert [row["epoch"] for row in history] == [1, 2, 3] and [row["other"] for row in history] == [1.0, 2.0, 3.0]
    with pytest.raises(KeyboardInterrupt):
        Learner(stop_in).run(tmp_path / "two", 3)
    resumed = Learner()
    assert losses(resumed.run(tmp_path / "two", 3)) == losses(history)
    assert resumed.seen == list(range(stop_in, 4))
    assert torch.equal(resumed.net.weight, undisturbed.net.weight)


@pytest.mark.parametrize("signal_in", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_the_epoch_resumes_after_it(
    number: signal.Signals, signal_in: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = Learner()
    history = undisturbed.run(tmp_path / "one", 3)
    stopped = Learner(signal_in=(signal_in, number))
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated), raised():
        stopped.run(tmp_path / "two", 3)
    assert stopped.seen[-1] == signal_in and stopped.kept == 1
    resumed = Learner()
    with caplog.at_level(logging.INFO):
        assert losses(resumed.run(tmp_path / "two", 3)) == losses(history)
    assert f"resuming after step 2 of epoch {signal_in} of 3" in caplog.text
    assert resumed.seen == list(range(signal_in, 4)) and resumed.kept == 0
    assert torch.equal(resumed.net.weight, undisturbed.net.weight)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_signal_the_state_within_an_epoch_is_not_saved(tmp_path: Path) -> None:
    Learner().run(tmp_path, 2)
    tensors, about = load_tensors(tmp_path / "checkpoint.safetensors")
    assert set(about) == {"history"} and not any(name.startswith("random") for name in tensors)


def test_finished_epochs_are_not_run_again(tmp_path: Path) -> None:
    history = Learner().run(tmp_path, 2)
    again = Learner()
    assert again.run(tmp_path, 2) == history
    assert again.seen == []


def test_a_loss_of_nan_stops_and_keeps_the_epoch_before(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the loss became nan in epoch 2; lower --train\.lr"):
        Learner(broken_in=2).run(tmp_path, 3)
    _, about = load_tensors(tmp_path / "checkpoint.safetensors")
    assert [row["epoch"] for row in about["history"]] == [1]
    json.dumps(about, allow_nan=False)


def test_damaged_or_unfit_state(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(b"half a file")
    with pytest.raises(RunError, match=r"checkpoint.safetensors: missing or damaged"):
        Learner().run(tmp_path, 2)
    save_tensors(file, {"network.weight": torch.ones(1, 5), "network.bias": torch.ones(1)}, {"history": []})
    with pytest.raises(RunError, match=r"checkpoint.safetensors: does not fit the network"):
        Learner().run(tmp_path, 2)


def test_enough_epochs_make_the_steps_within_bounds() -> None:
    assert enough_epochs(7, 10, 2, 500) == 7
    assert enough_epochs(0, 2651, 16, 500) == 3
    assert enough_epochs(0, 200, 16, 500) == 38  # 13 batches an epoch
    assert enough_epochs(0, 20, 16, 500) == 60
    assert enough_epochs(0, 80_000, 16, 500) == 3
