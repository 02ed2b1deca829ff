"""What a training step costs: how many operators it calls, and that these do not grow with images or classes."""

import dataclasses
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tagseg.rca.bank import Bank
from tagseg.rca.network import build_network
from tagseg.rca.regions import Gate
from tagseg.rca.step import training_step
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.training.loading import Crop
from tagseg.training.optimizer import build_optimizer

SETTINGS = Settings(
    train=TrainSettings(backbone="test_resnet", weights="random", neck=8, crop=33, freeze_stride=0),
    rca=RcaSettings(slots=6, prototypes=2, attended=2, confidence=0.0, attention_temperature=0.01),
)


class Calls(TorchDispatchMode):
    """Counts the operators that are called meanwhile, those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def calls_of_a_step(images: int, classes: int, settings: Settings = SETTINGS) -> Counter[str]:
    """Operators of a step with a full bank; every image has two tags, the first class and one of the next two."""
    torch.manual_seed(0)
    network = build_network(classes, settings.train, settings.rca).train()
    bank = Bank(classes + 1, settings.rca.slots, network.channels, settings.rca.update)
    entries = torch.arange(classes + 1).repeat_interleave(settings.rca.slots)
    bank.write(torch.rand(len(entries), network.channels), entries)
    network.refresh_prototypes(bank, torch.Generator().manual_seed(0))
    optimizer = build_optimizer(network.parameters(), [], 0.01, 1.0, 0.0)
    tags = F.one_hot(torch.arange(images) % 2 + 1, classes).float()
    tags[:, 0] = 1
    pictures = torch.rand(images, 3, 33, 33)
    nothing = torch.zeros(images)
    crop = Crop(pictures, tags, nothing.long(), nothing[:, None].expand(-1, 4), nothing.bool(), torch.zeros(0))
    gate = Gate(classes, settings.rca.confidence, relative=True)
    with Calls() as calls:
        losses, _ = training_step(network, bank, gate, optimizer, crop, settings, True, torch.Generator())
    assert losses["contrast"] > 0
    return calls.counts


@pytest.mark.parametrize("update", ["fifo", "blend"])
def test_a_step_calls_as_many_operators_for_many_images_and_classes_as_for_few(update: str) -> None:
    settings = dataclasses.replace(SETTINGS, rca=dataclasses.replace(SETTINGS.rca, update=update))
    few = calls_of_a_step(3, 4, settings)
    assert few.total() > 200  # forward, backward and optimiser
    for images, classes in ((12, 4), (3, 40), (12, 40)):
        assert calls_of_a_step(images, classes, settings) == few
