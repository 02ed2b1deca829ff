"""Training the segmentation network on pseudo-masks; 255 counts for nothing."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from tagseg.checkpoint import save_tensors
from tagseg.data.loading import MaskImages, epoch_seed, loader
from tagseg.data.records import VOID, Dataset
from tagseg.masks.write import mask_file
from tagseg.optimise import History, build_optimizer, choose_device, enough_epochs, epochs, poly, set_lr, warn_if_random
from tagseg.progress import Track, silent
from tagseg.run import write_atomically
from tagseg.segment.networks import Segmenter
from tagseg.settings import Settings

STEPS = 1000
"""Batches to learn from where the number of epochs is not given: a small data set is seen more often."""


@dataclass(frozen=True)
class Segmented:
    """A trained segmentation network: its folder and the figures of every epoch."""

    folder: Path
    history: History


def train_segmenter(
    dataset: Dataset, masks: Path, settings: Settings, folder: Path, track: Track = silent
) -> Segmented:
    """Train the segmentation network on the masks of the training images; resumes behind the last finished epoch.

    Leaves network.safetensors, network.json and history.jsonl in `folder`.

    Raises:
        ValueError: when weights, encoder or device cannot be had.
    """
    options = settings.segment
    chosen = enough_epochs(options.epochs, len(dataset.split("train")), options.batch, STEPS)
    options = dataclasses.replace(options, epochs=chosen)
    settings = dataclasses.replace(settings, segment=options)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    encoder, weights = options.encoder or settings.train.backbone, options.weights or settings.train.weights
    ids = len(dataset.classes) + 1
    warn_if_random(encoder, weights)
    freezing = (options.freeze_stride, options.freeze_batch_norm)
    network = Segmenter(encoder, ids, options.stride, weights, freezing).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rates = (options.lr, options.head_lr, options.weight_decay, options.optimiser)
    optimizer = build_optimizer(network.encoder_parameters(), network.new_parameters(), *rates)
    pairs = [(sample.image, mask_file(masks, sample.id)) for sample in dataset.split("train")]

    def one_epoch(epoch: int) -> dict[str, float]:
        return _one_epoch(network, optimizer, pairs, settings, device, epoch, track)

    history = epochs(folder, {"network": network}, optimizer, options.epochs, one_epoch)
    about = {
        "classes": ["background", *dataset.classes],
        "encoder": encoder,
        "stride": options.stride,
        "predict_scales": options.predict_scales,
        "predict_flip": options.predict_flip,
        "max_side": options.max_side,
    }
    save_tensors(folder / "network.safetensors", network.state_dict(), about)
    write_atomically(folder / "network.json", json.dumps(about, indent=1, ensure_ascii=False))
    write_atomically(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return Segmented(folder, history)


def mask_loss(scores: Float[Tensor, "b ids h w"], masks: Int64[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over pixels that are not void (0 when all are)."""
    losses = F.cross_entropy(scores.float(), masks, ignore_index=VOID, reduction="sum")
    return losses / (masks != VOID).sum().clamp_min(1)


def _one_epoch(
    network: Segmenter,
    optimizer: torch.optim.Optimizer,
    pairs: list[tuple[Path, Path]],
    settings: Settings,
    device: torch.device,
    epoch: int,
    track: Track,
) -> dict[str, float]:
    options = settings.segment
    seed = epoch_seed(settings.seed + 1, epoch)
    torch.manual_seed(seed)
    images = MaskImages(
        pairs, options.crop, options.scale, options.max_side, options.jitter, settings.data.max_megapixels, seed
    )
    batches = loader(images, options.batch, settings.workers, seed)
    network.train()
    total = 0.0
    for i, (pictures, masks) in enumerate(track(batches, f"segment, epoch {epoch}/{options.epochs}", len(batches))):
        set_lr(optimizer, options.lr * poly((epoch - 1 + i / len(batches)) / options.epochs))
        pictures = pictures.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            scores = network(pictures)
        loss = mask_loss(scores, masks.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() / len(batches)
    return {"loss": total, "lr": optimizer.param_groups[0]["lr"]}
