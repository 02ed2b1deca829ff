"""One training step of the classification network: losses of a batch, its regions into the bank, gradients."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tagseg.rca.bank import Bank
from tagseg.rca.contrast import contrast, mixed_contrast
from tagseg.rca.eps import saliency_loss
from tagseg.rca.network import Maps, RcaNetwork
from tagseg.rca.regions import Gate, Regions, pool_regions
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Settings
from tagseg.training.distributed import ALONE, Group
from tagseg.training.loading import Crop


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
    group: Group = ALONE,
) -> Float[Tensor, ""]:
    """Return the mean contrast of a batch's regions with the bank (0 unless `learn`), and write the regions into it.

    Every process of a group does this with the regions of all, so that their banks stay identical.
    """
    loss = features.new_zeros((), dtype=torch.float32)
    embeddings, image, label, confident = _all_regions(pool_regions(features.float(), regions), regions, group)
    if len(label) == 0:
        return loss
    if learn:
        against = (bank.slots, bank.written, rca.temperature)
        if rca.mix:
            losses = mixed_contrast(embeddings, label, image, *against, rca.mix_alpha, generator, rca.negatives)
            loss = torch.cat(losses).mean()
        else:
            loss = contrast(embeddings, label, *against, rca.negatives, generator).mean()
    # The losses hold no view of the slots, so the slots may change before the backward pass.
    bank.write(embeddings.detach()[confident], label[confident])
    return loss


def _all_regions(
    embeddings: Float[Tensor, "n d"], regions: Regions, group: Group
) -> tuple[Float[Tensor, "m d"], Int[Tensor, "m"], Int[Tensor, "m"], Bool[Tensor, "m"]]:
    """Return embedding, image, label and confidence of the regions of all processes, in the order in which a single
    process mines them from the whole batch."""
    if group.world_size == 1:
        return embeddings, regions.image, regions.label, regions.confident
    image = regions.image + group.share.first
    gathered = group.all_gather(embeddings, image, regions.label, regions.confident)
    order = (gathered[2] == 0).int().argsort(stable=True)  # background after all classes, as in `mine_regions`
    embeddings, image, label, confident = (values[order] for values in gathered)
    return embeddings, image, label, confident


def training_step(
    network: RcaNetwork,
    bank: Bank,
    gate: Gate,
    optimizer: torch.optim.Optimizer,
    crop: Crop,
    settings: Settings,
    started: bool,
    generator: torch.Generator,
    group: Group = ALONE,
    joined: nn.Module | None = None,
) -> tuple[dict[str, Float[Tensor, ""]], Maps]:
    """Learn from one batch and return its losses and maps.

    Every process of a group has its share of the batch and returns the losses of the whole batch.

    Args:
        started: whether the contrast has begun (see `rca.warmup`).
        joined: the network as training calls it in a group (see `join_network`).
    """
    device = network.prototypes.device
    pictures = crop.picture.to(device, memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        maps = (joined or network)(pictures)
    losses = _losses(network, maps, crop, bank, gate, settings, started, generator, group)
    optimizer.zero_grad()
    group.backward(losses["loss"])
    optimizer.step()
    return losses, maps


def _losses(
    network: RcaNetwork,
    maps: Maps,
    crop: Crop,
    bank: Bank,
    gate: Gate,
    settings: Settings,
    started: bool,
    generator: torch.Generator,
    group: Group,
) -> dict[str, Float[Tensor, ""]]:
    """Return the `loss` of the whole batch and its parts."""
    options, rca = settings.train, settings.rca
    tags = crop.tags.to(maps.coarse.device)
    refined_scores, coarse_scores, all_tags = group.all_gather(maps.refined_scores, maps.coarse_scores, tags)
    losses = {"tag_refined": tag_loss(refined_scores, all_tags), "tag_coarse": tag_loss(coarse_scores, all_tags)}
    loss = losses["tag_refined"]
    if rca.aggregation:
        loss = loss + options.coarse_weight * losses["tag_coarse"]
    if maps.coarse_background is not None and maps.refined_background is not None:
        cells = (maps.coarse.shape[-2], maps.coarse.shape[-1])
        saliency = network.backbone.reduce(crop.saliency.to(tags.device), cells)
        refined_maps = group.all_gather(maps.refined, maps.refined_background, saliency, tags.bool())
        coarse_maps = group.all_gather(maps.coarse, maps.coarse_background, saliency, tags.bool())
        refined, coarse = saliency_loss(*refined_maps), saliency_loss(*coarse_maps)
        losses |= {"saliency_refined": refined, "saliency_coarse": coarse}
        taught = refined + options.coarse_weight * coarse if rca.aggregation else refined
        loss = loss + options.saliency_weight * taught
    if rca.contrast or rca.aggregation:
        gate.watch(coarse_scores.detach().float().sigmoid(), all_tags.bool())
        regions = network.mine(maps, tags.bool(), gate.bars())
        losses["contrast"] = contrast_loss(
            regions, maps.features, bank, rca, rca.contrast and started, generator, group
        )
        loss = loss + rca.contrast_weight * losses["contrast"]
    return {"loss": loss} | losses
