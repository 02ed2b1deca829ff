import json
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tagseg.checkpoint import load_tensors, save_tensors
from tagseg.optimise import build_optimizer, choose_device, enough_epochs, epochs, poly, set_lr, warn_if_random
from tagseg.run import RunError


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


def test_a_random_start_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_if_random("resnet50", "timm")
        warn_if_random("resnet50", "some.safetensors")
        assert caplog.text == ""
        warn_if_random("resnet50", "random")
    assert "resnet50 starts from random weights" in caplog.text


class Training:
    """A network of one layer that learns a little every epoch, and can be stopped."""

    def __init__(self, stop_in: int = 0, broken_in: int = 0) -> None:
        torch.manual_seed(0)
        self.net, self.stop_in, self.broken_in = nn.Linear(2, 1), stop_in, broken_in
        self.optimizer = build_optimizer([], self.net.parameters(), 0.1, 1.0, 0.0)
        self.seen: list[int] = []

    def one_epoch(self, epoch: int) -> dict[str, float]:
        self.seen.append(epoch)
        if epoch == self.stop_in:
            raise KeyboardInterrupt
        set_lr(self.optimizer, 0.1 / epoch)
        self.optimizer.zero_grad()
        loss = self.net(torch.ones(1, 2)).square().sum()
        loss.backward()
        self.optimizer.step()
        return {"loss": math.nan if epoch == self.broken_in else loss.item(), "other": float(epoch)}

    def run(self, folder: Path, total: int) -> list[dict[str, float]]:
        return epochs(folder, {"net": self.net}, self.optimizer, total, self.one_epoch)


def losses(history: list[dict[str, float]]) -> list[float]:
    return [row["loss"] for row in history]


@pytest.mark.parametrize("stop_in", [1, 2, 3])
def test_interrupted_epochs_continue_as_if_undisturbed(stop_in: int, tmp_path: Path) -> None:
    undisturbed = Training()
    history = undisturbed.run(tmp_path / "one", 3)
    assert [row["epoch"] for row in history] == [1, 2, 3] and [row["other"] for row in history] == [1.0, 2.0, 3.0]
    with pytest.raises(KeyboardInterrupt):
        Training(stop_in).run(tmp_path / "two", 3)
    resumed = Training()
    assert losses(resumed.run(tmp_path / "two", 3)) == losses(history)
    assert resumed.seen == list(range(stop_in, 4))
    assert torch.equal(resumed.net.weight, undisturbed.net.weight)


def test_finished_epochs_are_not_run_again(tmp_path: Path) -> None:
    history = Training().run(tmp_path, 2)
    again = Training()
    assert again.run(tmp_path, 2) == history
    assert again.seen == []


def test_a_loss_that_is_no_number_stops_and_keeps_the_epoch_before(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the loss became nan in epoch 2; lower the learning rate \(lr\)"):
        Training(broken_in=2).run(tmp_path, 3)
    _, about = load_tensors(tmp_path / "checkpoint.safetensors")
    assert [row["epoch"] for row in about["history"]] == [1]
    json.dumps(about, allow_nan=False)


def test_damaged_or_unfit_state(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(b"half a file")
    with pytest.raises(RunError, match=r"checkpoint.safetensors: missing or damaged"):
        Training().run(tmp_path, 2)
    save_tensors(file, {"net.weight": torch.ones(1, 5), "net.bias": torch.ones(1)}, {"history": []})
    with pytest.raises(RunError, match=r"checkpoint.safetensors: does not fit the network"):
        Training().run(tmp_path, 2)


def test_enough_epochs_make_the_steps_within_bounds() -> None:
    assert enough_epochs(7, 10, 2, 500) == 7
    assert enough_epochs(0, 2651, 16, 500) == 3
    assert enough_epochs(0, 200, 16, 500) == 38  # 13 batches an epoch
    assert enough_epochs(0, 20, 16, 500) == 60
    assert enough_epochs(0, 80_000, 16, 500) == 3
