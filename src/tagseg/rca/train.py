"""Training of the classification network from tags, with the contrast and the aggregation of the memory bank."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from tagseg.data.check import require_saliency
from tagseg.data.records import Dataset
from tagseg.errors import RunError
from tagseg.features.cache import FeatureCache
from tagseg.networks.backbones import warn_if_random
from tagseg.rca.bank import Bank
from tagseg.rca.frozen import FrozenLayers
from tagseg.rca.heads import Teach, fit_heads
from tagseg.rca.held_out import write_held_out
from tagseg.rca.network import RcaNetwork, build_network
from tagseg.rca.oaa import accumulate, accumulating, finish_accumulating, keep_accumulated
from tagseg.rca.regions import Gate
from tagseg.rca.step import training_step
from tagseg.rca.taught import read_taught, write_taught
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.system.progress import Track, silent
from tagseg.system.records import Positive, Record, record_values
from tagseg.training.checkpoint import as_record, load_tensors, restore, save_tensors, save_trained
from tagseg.training.device import choose_device, compile_network
from tagseg.training.distributed import ALONE, Group
from tagseg.training.loading import Crop, TagImages, epoch_seed
from tagseg.training.loop import Epoch, History, Sums, Training, run_epochs
from tagseg.training.optimizer import build_optimizer, enough_epochs, poly
from tagseg.training.shared_layers import join_network

log = logging.getLogger(__name__)

CLASSIFIER_STEPS = 500
"""Batches to learn from when the number of epochs is not set: a small data set is seen more often."""


class BankAbout(Record, frozen=True):
    """The metadata of bank.safetensors."""

    classes: tuple[str, ...]


class ClassifierAbout(Record, frozen=True, omit_defaults=True):
    """network.json of the classification network, and the metadata of its weights: its classes and the settings that
    build it; those that an earlier version did not have are the standard ones. shift: as in `Grid`."""

    classes: tuple[str, ...]
    maps: str | None = None
    train: dict[str, Any] = msgspec.field(default_factory=dict)
    rca: dict[str, Any] = msgspec.field(default_factory=dict)
    layers: tuple[tuple[str, Positive, Positive], ...] = ()
    """Of a frozen network: the joined layers, with their channels and how many of them are kept."""

    shift: Annotated[float, msgspec.Meta(ge=-2, le=2)] = 0.0

    def settings(self) -> Settings:
        """Return the settings that build the network.

        Raises:
            ValueError: when a setting is unknown or has a wrong value.
        """
        values = {"train": self.train, "rca": self.rca} | ({} if self.maps is None else {"maps": self.maps})
        return Settings.from_dict(values, "its settings")


@dataclass(frozen=True)
class Trained:
    """A trained classification network: its folder and the figures of every epoch."""

    folder: Path
    history: History


@dataclass(frozen=True)
class _Learner:
    """The network in training, the network as training calls it (see `join_network`), the bank and its gate, and the
    optimiser."""

    network: RcaNetwork
    joined: nn.Module
    bank: Bank
    gate: Gate
    optimizer: torch.optim.Optimizer


def train(dataset: Dataset, settings: Settings, folder: Path, track: Track = silent, group: Group = ALONE) -> Trained:
    """Train the classification network on the tags of the training images; resume if the folder holds a saved state.

    Writes network.safetensors, bank.safetensors, network.json and history.jsonl to `folder`; with maps = oaa also
    accumulated.npy and accumulated.json. Of several processes (`group`) the main one writes.

    Raises:
        ValueError: when weights, backbone or device are not available, or maps = eps lacks a saliency map.
    """
    if settings.maps == "eps":
        require_saliency(dataset, settings.data, "maps = eps")
    settings = _with_epochs(settings, len(dataset.split("train")))
    options, rca = settings.train, settings.rca
    learner = _build(len(dataset.classes), settings, group)
    training = Training(
        name="train", folder=folder, modules={"network": learner.network, "bank": learner.bank, "gate": learner.gate},
        optimizer=learner.optimizer, lr=partial(_lr, options), epochs=options.epochs, batch=options.batch,
        seed=settings.seed, workers=settings.workers, group=group, track=track,
    )  # fmt: skip
    history = run_epochs(training, partial(_open_epoch, learner, dataset, settings, folder, group))
    if not group.is_main:
        return Trained(folder, history)
    network, bank = learner.network, learner.bank
    if rca.contrast or rca.aggregation:
        generator = torch.Generator(bank.slots.device).manual_seed(epoch_seed(settings.seed, 0))
        network.refresh_prototypes(bank, generator)
        _warn_if_unknown(bank, dataset.classes, rca)
    if settings.maps == "oaa":
        finish_accumulating(folder, dataset.split("train"), options.epochs)
    _save(folder, network, bank, dataset, settings, history)
    return Trained(folder, history)


def train_frozen(
    dataset: Dataset,
    cache: FeatureCache,
    settings: Settings,
    folder: Path,
    track: Track = silent,
    teach: Teach | None = None,
) -> Trained:
    """Fit the classification network's heads and bank on cached features (see `fit_heads`), and write what `train`
    writes; with `teach` also taught.safetensors."""
    heads = fit_heads(dataset, cache, settings, track, teach)
    layers = heads.network.layers
    assert layers is not None
    shapes = tuple((name, *shape) for name, shape in zip(layers.names, layers.shapes, strict=True))
    if heads.network.taught is not None:
        write_taught(folder, heads.network.taught)
    folder.mkdir(parents=True, exist_ok=True)
    write_held_out(folder, heads.held_out)
    _save(folder, heads.network, heads.bank, dataset, settings, heads.history, shapes)
    return Trained(folder, heads.history)


def _save(
    folder: Path,
    network: RcaNetwork,
    bank: Bank,
    dataset: Dataset,
    settings: Settings,
    history: History,
    layers: tuple[tuple[str, int, int], ...] = (),
) -> None:
    classes, plain = tuple(dataset.classes), settings.to_dict()
    shift = network.backbone.grid.shift
    about = ClassifierAbout(classes, plain["maps"], plain["train"], plain["rca"], layers, shift)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "bank.safetensors", bank.state_dict(), record_values(BankAbout(classes)))
    save_trained(folder, network, about, history)


def load_network(folder: Path, device: torch.device) -> tuple[RcaNetwork, tuple[str, ...]]:
    """Load a trained network (in evaluation mode) and its class names.

    Raises:
        RunError: when a file is missing or damaged, or describes another network than it holds.
    """
    file = folder / "network.safetensors"

    def build(about: dict[str, Any]) -> RcaNetwork:
        told = as_record(about, ClassifierAbout, file)
        try:
            settings = told.settings()
            eps = settings.maps == "eps"
            names, shapes = [name for name, *_ in told.layers], [(all_, kept) for _, all_, kept in told.layers]
            layers = FrozenLayers(names, shapes) if names else None
            return build_network(len(told.classes), settings.train, settings.rca, False, eps, layers, told.shift)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{file}: the network it describes cannot be built here ({error})") from error

    def expected(about: dict[str, Any]) -> dict[str, Tensor]:
        # On the meta device: the description may be of an enormous network while the file holds another one.
        with torch.device("meta"):
            return build(about).state_dict()

    tensors, about = load_tensors(file, expected)
    network = build(about)
    restore(network, tensors, file)
    network.taught = read_taught(folder, len(network.prototypes), network.channels)
    return network.to(device, memory_format=torch.channels_last).eval(), as_record(about, ClassifierAbout, file).classes  # type: ignore[call-overload]


def _with_epochs(settings: Settings, images: int) -> Settings:
    """Return the settings with the number of epochs resolved; after the warm-up at least one epoch follows."""
    options = settings.train
    epochs = enough_epochs(options.epochs, images, options.batch, CLASSIFIER_STEPS)
    if not options.epochs:
        epochs = max(epochs, settings.warm_epochs() + 1)
    return dataclasses.replace(settings, train=dataclasses.replace(options, epochs=epochs))


def _build(classes: int, settings: Settings, group: Group) -> _Learner:
    options, rca = settings.train, settings.rca
    device = choose_device(settings.device, group)
    torch.manual_seed(settings.seed)
    warn_if_random(options.backbone, options.weights)
    network = build_network(classes, options, rca, background=settings.maps == "eps")
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    compile_network(network, settings.compile)
    bank = Bank(classes + 1, rca.slots, network.channels, rca.update, rca.momentum).to(device)
    gate = Gate(classes, rca.confidence, rca.gate == "relative").to(device)
    new = [parameter for layer in network.new_layers() for parameter in layer.parameters()]
    rates = (options.lr, options.head_lr, options.weight_decay, options.optimiser, options.bias_lr)
    optimizer = build_optimizer(network.backbone.parameters(), new, *rates)
    return _Learner(network, join_network(network, group), bank, gate, optimizer)


@contextlib.contextmanager
def _open_epoch(
    learner: _Learner,
    dataset: Dataset,
    settings: Settings,
    folder: Path,
    group: Group,
    epoch: int,
    seed: int,
    resumed: bool,
) -> Iterator[Epoch]:
    """Yield an epoch of the training; prototypes are computed at its beginning, and maps = oaa accumulates in it."""
    options, rca = settings.train, settings.rca
    network, bank, optimizer = learner.network, learner.bank, learner.optimizer
    generator = torch.Generator().manual_seed(seed)
    samples, started = dataset.split("train"), epoch > rca.warmup
    # Square, and of a size that the backbone takes.
    side = network.backbone.fitting_size(options.crop, options.crop)[0]
    shape = (side, options.scale, options.jitter, settings.data.max_megapixels)
    images = TagImages(samples, len(dataset.classes), *shape, seed, settings.maps == "eps")
    if (rca.contrast or rca.aggregation) and started and not resumed:
        if group.is_main:
            network.refresh_prototypes(bank, torch.Generator(bank.slots.device).manual_seed(seed))
        group.broadcast(network.prototypes, network.exists)
    with accumulating(folder, samples, settings, epoch, resumed, group) as accumulation:

        def step(batches: Iterator[Crop], steps: int) -> Sums:
            (crop,) = batches
            losses, maps = training_step(
                network, bank, learner.gate, optimizer, crop, settings, started, generator, group, learner.joined
            )
            if accumulation is not None:
                accumulate(accumulation, network, maps, crop, group)
            return {name: value.item() / steps for name, value in losses.items()}

        keep = partial(keep_accumulated, folder, epoch, accumulation)
        yield Epoch(images, step, generators=(generator,), keep=keep)


def _lr(options: TrainSettings, epoch: int, progress: float) -> float:
    """Return the learning rate in an epoch, `progress` 0..1 through it."""
    if options.schedule == "poly":
        return options.lr * poly((epoch - 1 + progress) / options.epochs)
    return options.lr * 0.1 ** sum(epoch > step for step in options.steps)


def _warn_if_unknown(bank: Bank, classes: Sequence[str], rca: RcaSettings) -> None:
    names = ["background"] * rca.background + list(classes)
    unknown = [name for name, filled in zip(names, bank.filled.tolist()[-len(names) :], strict=True) if not filled]
    if unknown:
        log.warning(
            "the memory bank holds no region of %s, so the maps of these classes (of all classes, if background is "
            "missing) are not refined; a region enters the bank when the probability of its tag is above %g: train "
            "longer (--train.epochs), or let in the better half of every class's regions (--rca.gate relative)",
            ", ".join(unknown), rca.confidence,
        )  # fmt: skip
