"""Training the segmentation network on masks; 255 counts for nothing."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tagseg.data.records import VOID, Dataset
from tagseg.errors import RunError
from tagseg.masks.mask_files import mask_file
from tagseg.networks.backbones import warn_if_random
from tagseg.networks.segmenters import Segmenter, choose_network
from tagseg.settings.settings import Settings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track, silent
from tagseg.training.checkpoint import CHECKPOINT, save_tensors
from tagseg.training.device import choose_device, compile_network
from tagseg.training.distributed import ALONE, Ranks
from tagseg.training.history import write_history
from tagseg.training.loading import MaskImages, epoch_seed, loader
from tagseg.training.loop import History, Steps, epochs
from tagseg.training.optimizer import build_optimizer, enough_epochs, poly, set_lr

SEGMENTER_STEPS = 1000
"""Batches to learn from where the number of epochs is not given: a small data set is seen more often."""


@dataclass(frozen=True)
class Segmented:
    """A trained segmentation network: its folder and the figures of every epoch."""

    folder: Path
    history: History


@dataclass(frozen=True)
class _Learner:
    """What learns: the network, how it is called (see `Ranks.join`), the average of its weights, the optimiser."""

    network: Segmenter
    joined: nn.Module
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer


def train_segmenter(
    dataset: Dataset, masks: Path, settings: Settings, folder: Path, track: Track = silent, ranks: Ranks = ALONE
) -> Segmented:
    """Train the segmentation network on the masks of the training images; resumes where it was left.

    Leaves network.safetensors, network.json and history.jsonl in `folder`. Of several processes (`ranks`) the main one
    leaves them.

    Raises:
        ValueError: when encoder, network and stride do not go together, or weights or device cannot be had.
        RunError: when the masks hold no pixel to learn from, or the loss stops being a number.
    """
    options, images = settings.segment, len(dataset.split("train"))
    chosen = enough_epochs(options.epochs, images, options.batch * options.accumulate, SEGMENTER_STEPS)
    settings = dataclasses.replace(settings, segment=dataclasses.replace(options, epochs=chosen))
    device = choose_device(settings.device, ranks)
    torch.manual_seed(settings.seed)
    network, about = build_segmenter(settings, len(dataset.classes) + 1)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = weight_average(network, options.ema) if options.ema else None
    compile_network(network, settings.compile)
    rates = (options.lr, options.head_lr, options.weight_decay, options.optimiser)
    optimizer = build_optimizer(network.encoder_parameters(), network.new_parameters(), *rates)
    pairs = [(sample.image, mask_file(masks, sample.id)) for sample in dataset.split("train")]

    learner = _Learner(network, ranks.join(network), average, optimizer)

    def one_epoch(epoch: int, steps: Steps) -> dict[str, float]:
        return _one_epoch(learner, pairs, settings, epoch, steps, track, ranks)

    modules: dict[str, nn.Module] = {"network": network} | ({"average": average} if average else {})
    history = epochs(folder, modules, optimizer, chosen, one_epoch, ranks)
    if not ranks.main:
        return Segmented(folder, history)
    about |= {
        "classes": ["background", *dataset.classes],
        "predict_scales": options.predict_scales,
        "predict_flip": options.predict_flip,
        "max_side": options.max_side,
    }
    kept = average.module if average else network
    save_tensors(folder / "network.safetensors", kept.state_dict(), about)
    write_atomically(folder / "network.json", json.dumps(about, indent=1, ensure_ascii=False))
    write_history(folder / "history.jsonl", history)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return Segmented(folder, history)


def build_segmenter(settings: Settings, ids: int) -> tuple[Segmenter, dict[str, Any]]:
    """Return the network that the settings ask for, with its start weights, and what it takes to build it again.

    Raises:
        ValueError: when encoder, network and stride do not go together, or weights cannot be had.
    """
    options = settings.segment
    encoder, weights = options.encoder or settings.train.backbone, options.weights or settings.train.weights
    warn_if_random(encoder, weights)
    name = choose_network(options.network, encoder)
    freezing = (options.freeze_stride, options.freeze_batch_norm)
    network = Segmenter(encoder, ids, options.stride, weights, freezing, name)
    return network, {"network": name, "encoder": encoder, "stride": options.stride}


def weight_average(network: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a network for the exponential moving average of its weights and batch norms.

    A step moves it by 1 - `decay` towards the network, and by more while few steps are done: step t has a decay of
    (1 + t) / (10 + t) at most, so that start weights do not stay in a short training.
    """

    def step(mean: Sequence[Tensor], now: Sequence[Tensor], count: Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for one, other in zip(mean, now, strict=True):
            # Counters of batches are whole numbers: there is no average of them.
            one.lerp_(other, share) if one.is_floating_point() else one.copy_(other)

    return AveragedModel(network, multi_avg_fn=step, use_buffers=True)


def mask_loss(scores: Float[Tensor, "b ids h w"], masks: Int64[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return the cross-entropy, summed over the pixels that are not void."""
    return F.cross_entropy(scores.float(), masks, ignore_index=VOID, reduction="sum")


def _one_epoch(
    learner: _Learner,
    pairs: list[tuple[Path, Path]],
    settings: Settings,
    epoch: int,
    steps: Steps,
    track: Track,
    ranks: Ranks,
) -> dict[str, float]:
    options, network, optimizer = settings.segment, learner.network, learner.optimizer
    device = network.mean.device
    seed = epoch_seed(settings.seed + 1, epoch)
    torch.manual_seed(seed)
    steps.begin([])
    # Square, and of a size that the network takes.
    crop, limit = network.fitting_size(options.crop, options.crop)[0], settings.data.max_megapixels
    images = MaskImages(pairs, crop, options.scale, options.max_side, options.jitter, limit, seed)
    batches = loader(images, options.batch, settings.workers, seed, steps.done * options.accumulate, ranks)
    shown = iter(track(ranks.batches(batches), f"segment, epoch {epoch}/{options.epochs}", len(batches)))
    total = steps.done + -(-len(batches) // options.accumulate)
    network.train()
    # Sums are kept small by a constant, and turned into means when all labelled pixels of a step are counted.
    scale = float(options.batch * crop * crop)
    sums = {"loss": 0.0, "labelled": 0.0} | steps.sums
    for step in range(steps.done, total):
        set_lr(optimizer, options.lr * poly((epoch - 1 + step / total) / options.epochs))
        optimizer.zero_grad()
        pixels = lost = 0.0
        for pictures, masks in itertools.islice(shown, options.accumulate):
            pictures, masks = pictures.to(device, memory_format=torch.channels_last), masks.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                scores = learner.joined(pictures)
            scores, masks = ranks.own(scores, masks)
            loss = mask_loss(scores, masks) / scale
            ranks.backward(loss)
            lost += loss.item() * scale
            pixels += int((masks != VOID).sum())
        pixels, lost = ranks.total(pixels, lost)
        # The mean over all batches of the step is what one large batch would give.
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.grad *= scale / max(pixels, 1)
        optimizer.step()
        if learner.average:
            learner.average.update_parameters(network)
        sums["loss"] += lost
        sums["labelled"] += pixels
        sums["lr"] = optimizer.param_groups[0]["lr"]
        steps.end(step + 1, sums, [], lambda: None)
    if not sums["labelled"]:
        raise RunError(
            f"{pairs[0][1].parent}: the masks hold no pixel to learn from, all are 255; look at them, and lower "
            "--masks.unsure or train the classifier longer (--train.epochs)"
        )
    return {"loss": sums["loss"] / sums["labelled"], "lr": sums["lr"]}
