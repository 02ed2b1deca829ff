"""Training of the segmentation network on masks; pixels of 255 (void) are ignored."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tagseg.data.records import VOID, Dataset
from tagseg.errors import RunError
from tagseg.masks.mask_files import mask_file
from tagseg.networks.backbones import RANDOM, warn_if_random
from tagseg.networks.segmenters import Segmenter, choose_network
from tagseg.segment.about import SegmenterAbout
from tagseg.settings.segment import SegmentSettings
from tagseg.settings.settings import Settings
from tagseg.system.progress import Track, silent
from tagseg.training.checkpoint import save_trained
from tagseg.training.device import choose_device, compile_network
from tagseg.training.distributed import ALONE, Group
from tagseg.training.loading import MaskImages
from tagseg.training.loop import Epoch, History, Sums, Training, run_epochs
from tagseg.training.optimizer import build_optimizer, enough_epochs, poly
from tagseg.training.shared_layers import join_network

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Segmented:
    """A trained segmentation network: its folder, and the figures of every epoch."""

    folder: Path
    history: History


@dataclass(frozen=True)
class _Learner:
    """The network in training, the network as training calls it (see `join_network`), the moving average of its weights
    and the optimiser."""

    network: Segmenter
    joined: nn.Module
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer


def train_segmenter(
    dataset: Dataset,
    masks: Path,
    settings: Settings,
    folder: Path,
    track: Track = silent,
    group: Group = ALONE,
    start: Mapping[str, Tensor] | None = None,
) -> Segmented:
    """Train the segmentation network on the masks of the training images; resume if the folder holds a saved state.

    Writes network.safetensors, network.json and history.jsonl to `folder`. If several processes train together
    (`group`), only the main one writes. The encoder starts at the backbone whose tensors `start` holds, else at the
    weights of the settings.

    Raises:
        ValueError: when encoder, network and stride do not fit together, or weights or device are not available.
        RunError: when the masks have no labelled pixel, or the loss is no longer finite.
    """
    options, images = settings.segment, len(dataset.split("train"))
    epochs = enough_epochs(options.epochs, images, options.batch * options.accumulate, options.steps)
    options = dataclasses.replace(options, epochs=epochs)
    settings = dataclasses.replace(settings, segment=options)
    learner, about = _build(("background", *dataset.classes), settings, group, start)
    network, average = learner.network, learner.average
    pairs = [(sample.image, mask_file(masks, sample.id)) for sample in dataset.split("train")]
    if len(pairs) == 1:
        pairs *= 2  # batch norm needs two crops
    training = Training(
        name="segment", folder=folder, modules={"network": network} | ({"average": average} if average else {}),
        optimizer=learner.optimizer, lr=partial(_lr, options), epochs=epochs, batch=options.batch,
        seed=settings.seed + 1, accumulate=options.accumulate, workers=settings.workers, group=group, track=track,
    )  # fmt: skip
    history = run_epochs(training, partial(_open_epoch, learner, pairs, settings, group))
    if group.is_main:
        save_trained(folder, average.module if average else network, about, history)
    return Segmented(folder, history)


def build_segmenter(
    settings: Settings, classes: tuple[str, ...], start: Mapping[str, Tensor] | None = None
) -> tuple[Segmenter, SegmenterAbout]:
    """Return the network of the settings with its initial weights, or those of the backbone `start` in its encoder, and
    the description from which it can be built.

    Raises:
        ValueError: when encoder, network and stride do not fit together, or weights are not available.
    """
    options = settings.segment
    encoder, weights = options.encoder or settings.train.backbone, options.weights or settings.train.weights
    if start is None:
        warn_if_random(encoder, weights)
    else:
        weights = RANDOM
    name = choose_network(options.network, encoder, options.stride)
    freezing = (options.freeze_stride, options.freeze_batch_norm)
    network = Segmenter(
        encoder, len(classes), options.stride, weights, freezing, name, "measured", options.decoder_channels
    )
    if start is not None:
        network.start_encoder(start)
    about = SegmenterAbout(
        network=name, encoder=encoder, stride=options.stride, classes=classes, max_side=options.max_side,
        predict_scales=tuple(options.predict_scales), predict_flip=options.predict_flip,
        cornered=network.grid.cornered if network.grid else None, shift=network.grid.shift if network.grid else 0.0,
        decoder_channels=options.decoder_channels,
    )  # fmt: skip
    return network, about


def weight_average(network: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a network that holds the exponential moving average of its weights and batch norms.

    A step moves the average towards the network by a share of 1 - `decay`. The decay of step t is at most
    (1 + t) / (10 + t), so that the initial weights lose their influence in a short training too.
    """

    def step(mean: Sequence[Tensor], now: Sequence[Tensor], count: Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for one, other in zip(mean, now, strict=True):
            # Counters of batches are integers, which are copied, not averaged.
            one.lerp_(other, share) if one.is_floating_point() else one.copy_(other)

    return AveragedModel(network, multi_avg_fn=step, use_buffers=True)


def mask_loss(scores: Float[Tensor, "b ids h w"], masks: Int64[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return the sum of the cross-entropy over the pixels that are not void."""
    return F.cross_entropy(scores.float(), masks, ignore_index=VOID, reduction="sum")


def _build(
    classes: tuple[str, ...], settings: Settings, group: Group, start: Mapping[str, Tensor] | None
) -> tuple[_Learner, SegmenterAbout]:
    options = settings.segment
    device = choose_device(settings.device, group)
    torch.manual_seed(settings.seed)
    network, about = build_segmenter(settings, classes, start)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = weight_average(network, options.ema) if options.ema else None
    compile_network(network, settings.compile)
    rates = (options.lr, options.head_lr, options.weight_decay, options.optimiser)
    optimizer = build_optimizer(network.encoder_parameters(), network.new_parameters(), *rates)
    return _Learner(network, join_network(network, group), average, optimizer), about


@contextlib.contextmanager
def _open_epoch(
    learner: _Learner,
    pairs: list[tuple[Path, Path]],
    settings: Settings,
    group: Group,
    epoch: int,
    seed: int,
    resumed: bool,
) -> Iterator[Epoch]:
    """Yield an epoch of the training."""
    options, limit = settings.segment, settings.data.max_megapixels
    # Square, and of a size that the network takes.
    crop = learner.network.fitting_size(options.crop, options.crop)[0]
    images = MaskImages(pairs, crop, options.scale, options.max_side, options.jitter, limit, seed)
    # Keeps gradients small until the labelled pixels of a step are counted.
    scale = float(options.batch * crop * crop)

    def step(batches: Iterator[Batch], steps: int) -> Sums:
        return _step(learner, batches, scale, settings.precision == "bf16", group)

    def figures(sums: Sums) -> Sums:
        if not sums["labelled"]:
            raise RunError(
                f"{pairs[0][1].parent}: the masks have no labelled pixel, all are 255 (void); look at them, and "
                "lower --masks.unsure, or check the tags"
            )
        return {"loss": sums["loss"] / sums["labelled"], "lr": sums["lr"]}

    yield Epoch(images, step, figures)


def _step(learner: _Learner, batches: Iterator[Batch], scale: float, bf16: bool, group: Group) -> Sums:
    """Learn from the batches of a step; return the summed loss and the number of its labelled pixels.

    The loss of a step is the mean over the labelled pixels of all its batches, as in one large batch.
    """
    network, device = learner.network, learner.network.mean.device
    learner.optimizer.zero_grad()
    pixels = lost = 0.0
    for pictures, masks in batches:
        pictures, masks = pictures.to(device, memory_format=torch.channels_last), masks.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            scores = learner.joined(pictures)
        scores, masks = group.own(scores, masks)
        loss = mask_loss(scores, masks) / scale
        group.backward(loss)
        lost += loss.item() * scale
        pixels += int((masks != VOID).sum())
    pixels, lost = group.sum(pixels, lost)
    for parameter in network.parameters():
        if parameter.grad is not None:
            parameter.grad *= scale / max(pixels, 1)
    learner.optimizer.step()
    if learner.average:
        learner.average.update_parameters(network)
    return {"loss": lost, "labelled": pixels}


def _lr(options: SegmentSettings, epoch: int, progress: float) -> float:
    """Return the learning rate in an epoch, `progress` 0..1 through it."""
    return options.lr * poly((epoch - 1 + progress) / options.epochs)
