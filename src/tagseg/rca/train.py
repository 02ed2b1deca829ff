"""Training the classification network from tags, with the bank's contrast and aggregation."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tagseg.data.check import require_saliency
from tagseg.data.records import Dataset
from tagseg.errors import RunError
from tagseg.networks.backbones import warn_if_random
from tagseg.rca.bank import Bank
from tagseg.rca.contrast import contrast, mixed_contrast
from tagseg.rca.eps import saliency_loss
from tagseg.rca.network import Maps, RcaNetwork, build_network
from tagseg.rca.oaa import accumulate, accumulating, finish_accumulating, keep_accumulated
from tagseg.rca.regions import Regions, pool_regions
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track, silent
from tagseg.system.untrusted import check_shape
from tagseg.training.checkpoint import CHECKPOINT, load_tensors, restore, save_tensors
from tagseg.training.device import choose_device, compile_network
from tagseg.training.distributed import ALONE, Ranks
from tagseg.training.history import write_history
from tagseg.training.loading import Crop, TagImages, epoch_seed, loader
from tagseg.training.loop import History, Steps, epochs
from tagseg.training.optimizer import build_optimizer, enough_epochs, poly, set_lr

log = logging.getLogger(__name__)

CLASSIFIER_STEPS = 500
"""Batches to learn from where the number of epochs is not given: a small data set is seen more often."""


@dataclass(frozen=True)
class Trained:
    """A trained classification network: its folder and the figures of every epoch."""

    folder: Path
    history: History


@dataclass(frozen=True)
class _Learner:
    """What learns: the network, how it is called (see `Ranks.join`), the bank, the optimiser."""

    network: RcaNetwork
    joined: nn.Module
    bank: Bank
    optimizer: torch.optim.Optimizer


def train(dataset: Dataset, settings: Settings, folder: Path, track: Track = silent, ranks: Ranks = ALONE) -> Trained:
    """Train the classification network on the tags of the training images; resumes where it was left.

    Leaves network.safetensors, bank.safetensors, network.json and history.jsonl in `folder`; with maps = oaa also
    accumulated.npy and accumulated.json. Of several processes (`ranks`) the main one leaves them.

    Raises:
        ValueError: when weights, backbone or device cannot be had, or a saliency map is missing that maps = eps needs.
    """
    if settings.maps == "eps":
        require_saliency(dataset, settings.data, "maps = eps")
    options = settings.train
    chosen = enough_epochs(options.epochs, len(dataset.split("train")), options.batch, CLASSIFIER_STEPS)
    if not options.epochs:  # behind the warm-up there is something to learn, too
        chosen = max(chosen, settings.warm_epochs() + 1)
    options = dataclasses.replace(options, epochs=chosen)
    settings = dataclasses.replace(settings, train=options)
    device = choose_device(settings.device, ranks)
    torch.manual_seed(settings.seed)
    classes = len(dataset.classes)
    warn_if_random(settings.train.backbone, settings.train.weights)
    network = build_network(classes, settings.train, settings.rca, background=settings.maps == "eps")
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    compile_network(network, settings.compile)
    rca = settings.rca
    bank = Bank(classes + 1, rca.slots, network.channels, rca.update, rca.momentum).to(device)
    new = [parameter for layer in network.new_layers() for parameter in layer.parameters()]
    rates = (options.lr, options.head_lr, options.weight_decay, options.optimiser, options.bias_lr)
    optimizer = build_optimizer(network.backbone.parameters(), new, *rates)

    learner = _Learner(network, ranks.join(network), bank, optimizer)

    def one_epoch(epoch: int, steps: Steps) -> dict[str, float]:
        return _one_epoch(learner, dataset, settings, folder, epoch, steps, track, ranks)

    history = epochs(folder, {"network": network, "bank": bank}, optimizer, options.epochs, one_epoch, ranks)
    if not ranks.main:
        return Trained(folder, history)
    if rca.contrast or rca.aggregation:
        network.refresh_prototypes(bank, torch.Generator(device).manual_seed(epoch_seed(settings.seed, 0)))
        _warn_if_unknown(bank, dataset.classes, rca)
    if settings.maps == "oaa":
        finish_accumulating(folder, dataset.split("train"), options.epochs)
    _save(folder, network, bank, dataset.classes, settings, history)
    return Trained(folder, history)


def load_network(folder: Path, device: torch.device) -> tuple[RcaNetwork, tuple[str, ...]]:
    """Restore a trained network (in evaluation mode) and its class names.

    Raises:
        RunError: when a file is missing or damaged, or describes another network than it holds.
    """
    file = folder / "network.safetensors"

    def build(about: dict[str, Any]) -> RcaNetwork:
        try:
            check_shape(about, {"classes": [str]})
            values: dict[str, Any] = {key: about[key] for key in ("maps", "train", "rca") if key in about}
            settings = Settings.from_dict(values, "its settings")
            eps = settings.maps == "eps"
            return build_network(len(about["classes"]), settings.train, settings.rca, start=False, background=eps)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{file}: the network it describes cannot be built here ({error})") from error

    def expected(about: dict[str, Any]) -> dict[str, Tensor]:
        # Without memory first: it may describe an enormous network, and hold another one.
        with torch.device("meta"):
            return build(about).state_dict()

    tensors, about = load_tensors(file, expected)
    network = build(about)
    restore(network, tensors, file)
    return network.to(device, memory_format=torch.channels_last).eval(), tuple(about["classes"])  # type: ignore[call-overload]


def tag_loss(scores: Float[Tensor, "b c"], tags: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """Return the multi-label soft margin loss of a map's scores (means over cells)."""
    return F.multilabel_soft_margin_loss(scores.float(), tags)


def contrast_loss(
    regions: Regions,
    features: Float[Tensor, "b d h w"],
    bank: Bank,
    rca: RcaSettings,
    learn: bool,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """Return the mean contrast of a batch's regions with the bank (0 unless `learn`), and write them into it.

    Of several processes each does so with the regions of all of them, so that their banks stay one bank.
    """
    loss = features.new_zeros((), dtype=torch.float32)
    embeddings, image, label, confident = _all_regions(pool_regions(features.float(), regions), regions, ranks)
    if len(label) == 0:
        return loss
    if learn:
        against = (bank.slots, bank.written, rca.temperature)
        if rca.mix:
            alone_and_mixed = mixed_contrast(
                embeddings, label, image, *against, rca.mix_alpha, generator, rca.negatives
            )
            loss = torch.cat(alone_and_mixed).mean()
        else:
            loss = contrast(embeddings, label, *against, rca.negatives, generator).mean()
    # The losses keep no view of the slots, so these may change before the backward pass.
    bank.write(embeddings.detach()[confident], label[confident])
    return loss


def _all_regions(
    embeddings: Float[Tensor, "n d"], regions: Regions, ranks: Ranks
) -> tuple[Float[Tensor, "m d"], Int[Tensor, "m"], Int[Tensor, "m"], Bool[Tensor, "m"]]:
    """Embedding, image, label and confidence of the regions of all processes, in the order in which one with the whole
    batch mines them."""
    if ranks.count == 1:
        return embeddings, regions.image, regions.label, regions.confident
    image = regions.image + ranks.share.first
    gathered = ranks.gather(embeddings, image, regions.label, regions.confident)
    order = (gathered[2] == 0).int().argsort(stable=True)  # background comes behind all classes, see `mine_regions`
    embeddings, image, label, confident = (values[order] for values in gathered)
    return embeddings, image, label, confident


def training_step(
    network: RcaNetwork,
    bank: Bank,
    optimizer: torch.optim.Optimizer,
    crop: Crop,
    settings: Settings,
    started: bool,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
    joined: nn.Module | None = None,
) -> tuple[dict[str, Float[Tensor, ""]], Maps]:
    """Learn from one batch; return its losses and what the network saw. `started` says whether the contrast has begun
    (see `rca.warmup`).

    Of several processes each has its share of the batch, calls the network as `joined` (see `Ranks.join`), and returns
    the losses of the whole batch."""
    device = network.prototypes.device
    pictures = crop.picture.to(device, memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        maps = (joined or network)(pictures)
    losses = _losses(network, maps, crop, bank, settings, started, generator, ranks)
    optimizer.zero_grad()
    ranks.backward(losses["loss"])
    optimizer.step()
    return losses, maps


def _one_epoch(
    learner: _Learner,
    dataset: Dataset,
    settings: Settings,
    folder: Path,
    epoch: int,
    steps: Steps,
    track: Track,
    ranks: Ranks,
) -> dict[str, float]:
    options, rca = settings.train, settings.rca
    network, bank, optimizer = learner.network, learner.bank, learner.optimizer
    seed = epoch_seed(settings.seed, epoch)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    steps.begin([generator])
    samples = dataset.split("train")
    # Square, and of a size that the backbone takes.
    crop_side = network.backbone.fitting_size(options.crop, options.crop)[0]
    shape = (crop_side, options.scale, options.jitter, settings.data.max_megapixels)
    images = TagImages(samples, len(dataset.classes), *shape, seed, settings.maps == "eps")
    batches = loader(images, options.batch, settings.workers, seed, steps.done, ranks)
    total = steps.done + len(batches)
    started = epoch > rca.warmup
    if (rca.contrast or rca.aggregation) and started and not steps.done:
        if ranks.main:
            network.refresh_prototypes(bank, torch.Generator(bank.slots.device).manual_seed(seed))
        ranks.copy_main(network.prototypes, network.exists)
    network.train()
    sums = dict(steps.sums)
    shown = track(ranks.batches(batches), f"train, epoch {epoch}/{options.epochs}", len(batches))
    with accumulating(folder, samples, settings, epoch, steps.done > 0, ranks) as accumulation:
        keep = partial(keep_accumulated, folder, epoch, accumulation)
        for i, crop in enumerate(shown, steps.done):
            set_lr(optimizer, _lr(options, epoch, i / total))
            losses, maps = training_step(
                network, bank, optimizer, crop, settings, started, generator, ranks, learner.joined
            )
            if accumulation is not None:
                accumulate(accumulation, network, maps, crop, ranks)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item() / total
            sums["lr"] = optimizer.param_groups[0]["lr"]
            steps.end(i + 1, sums, [generator], keep)
    return sums


def _losses(
    network: RcaNetwork,
    maps: Maps,
    crop: Crop,
    bank: Bank,
    settings: Settings,
    started: bool,
    generator: torch.Generator,
    ranks: Ranks,
) -> dict[str, Float[Tensor, ""]]:
    """Return a batch's `loss` and the parts it is made of."""
    options, rca = settings.train, settings.rca
    tags = crop.tags.to(maps.coarse.device)
    refined_scores, coarse_scores, all_tags = ranks.gather(maps.refined_scores, maps.coarse_scores, tags)
    losses = {"tag_refined": tag_loss(refined_scores, all_tags), "tag_coarse": tag_loss(coarse_scores, all_tags)}
    loss = losses["tag_refined"]
    if rca.aggregation:
        loss = loss + options.coarse_weight * losses["tag_coarse"]
    if maps.coarse_background is not None and maps.refined_background is not None:
        cells = (maps.coarse.shape[-2], maps.coarse.shape[-1])
        saliency = network.backbone.reduce(crop.saliency.to(tags.device), cells)
        refined_maps = ranks.gather(maps.refined, maps.refined_background, saliency, tags.bool())
        coarse_maps = ranks.gather(maps.coarse, maps.coarse_background, saliency, tags.bool())
        refined, coarse = saliency_loss(*refined_maps), saliency_loss(*coarse_maps)
        losses |= {"saliency_refined": refined, "saliency_coarse": coarse}
        taught = refined + options.coarse_weight * coarse if rca.aggregation else refined
        loss = loss + options.saliency_weight * taught
    if rca.contrast or rca.aggregation:
        regions = network.mine(maps, tags.bool())
        losses["contrast"] = contrast_loss(
            regions, maps.features, bank, rca, rca.contrast and started, generator, ranks
        )
        loss = loss + rca.contrast_weight * losses["contrast"]
    return {"loss": loss} | losses


def _warn_if_unknown(bank: Bank, classes: Sequence[str], rca: RcaSettings) -> None:
    names = ["background"] * rca.background + list(classes)
    unknown = [name for name, filled in zip(names, bank.filled.tolist()[-len(names) :], strict=True) if not filled]
    if unknown:
        log.warning(
            "the memory bank holds no region of %s, so that maps of classes without (all, without background) are "
            "plain; a region enters it when its tag's probability is above %g: train longer (--train.epochs) or lower "
            "--rca.confidence",
            ", ".join(unknown), rca.confidence,
        )  # fmt: skip


def _lr(options: TrainSettings, epoch: int, through: float) -> float:
    if options.schedule == "poly":
        return options.lr * poly((epoch - 1 + through) / options.epochs)
    return options.lr * 0.1 ** sum(epoch > step for step in options.steps)


def _save(
    folder: Path, network: RcaNetwork, bank: Bank, classes: Sequence[str], settings: Settings, history: History
) -> None:
    plain = settings.to_dict()
    about = {"classes": list(classes), **{key: plain[key] for key in ("maps", "train", "rca")}}
    save_tensors(folder / "bank.safetensors", bank.state_dict(), {"classes": list(classes)})
    save_tensors(folder / "network.safetensors", network.state_dict(), about)
    write_atomically(folder / "network.json", json.dumps(about, indent=1, ensure_ascii=False))
    write_history(folder / "history.jsonl", history)
    (folder / CHECKPOINT).unlink(missing_ok=True)
