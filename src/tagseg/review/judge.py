"""Judge masks without true masks, by the predictions of the trained networks."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from tagseg.data.images import read_image, read_mask_file
from tagseg.data.records import VOID, Sample
from tagseg.evaluate.quality import ClassQuality, ImageQuality, quality_line
from tagseg.masks.localise import views
from tagseg.masks.map_files import map_file, tagged_maps
from tagseg.masks.mask_files import mask_file
from tagseg.masks.probabilities import background_cut, label_probabilities
from tagseg.masks.resize import enlarge
from tagseg.rca.network import RcaNetwork
from tagseg.rca.train import load_network
from tagseg.run.decisions import MaskPair
from tagseg.run.estimate import JUDGED_SIDE
from tagseg.run.folder import Run
from tagseg.segment.infer import calls, view_probabilities
from tagseg.segment.predictor import Predictor
from tagseg.segment.read_network import read_predictor
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.masks import MaskSettings
from tagseg.system.progress import Track, map_ahead
from tagseg.training.device import choose_device
from tagseg.training.loading import to_tensor

VIEWS = ((1.0, False), (1.0, True), (0.75, False), (1.25, True))
"""The segmentation network's views of an image: its scale, and whether it is mirrored."""

DECODERS = 2
"""Threads that decode images while the networks run."""

FAINT = 0.02
"""Lower probabilities that a class is present are not stored; with 1,000 classes they would fill most of the file."""


class Evidence(NamedTuple):
    """The evidence for judging an image's mask, all at one size (`h w` pixels).

    views: the segmentation network's probability of each id in each view. decided: the mask without unsure pixels.
    unsure: which pixels are unsure. maps: the probabilities of background and of each tag by the maps. untagged: the
    classes that the mask shows though the image is not tagged with them.
    """

    id: str
    tags: tuple[int, ...]
    views: Float32[np.ndarray, "views ids h w"]
    decided: UInt8[np.ndarray, "h w"]
    unsure: Bool[np.ndarray, "h w"]
    maps: Float32[np.ndarray, "l h w"]
    untagged: tuple[int, ...] = ()


def read_judge(run: Run) -> Predictor:
    """Return a run's segmentation network, for images of the size at which masks are judged.

    Raises:
        RunError: if its files are damaged.
    """
    predictor = read_predictor(run.segmenter, run.settings().device)
    return dataclasses.replace(predictor, max_side=min(predictor.max_side or JUDGED_SIDE, JUDGED_SIDE))


def judge_images(samples: Sequence[Sample], run: Run, track: Track) -> None:
    """Judge the masks of images one by one, and append each result to the run's file of scores.

    Raises:
        RunError, DataError: as `assess`.
    """
    settings, source = run.settings(), run.final()
    predictor = read_judge(run)
    # If another tool made the maps, the run has no classification network.
    network = load_network(run.network, choose_device(settings.device))[0] if run.done("train") else None
    rule = source.settings().mask_rule()

    def read(sample: Sample) -> tuple[Sample, Image.Image]:
        return sample, read_image(sample.image, settings.data.max_megapixels)

    with run.quality_file.open("a", encoding="utf-8") as file:
        images = map_ahead(samples, read, DECODERS)
        with contextlib.closing(images):
            for sample, image in track(images, "judge masks", len(samples)):
                scores = tag_scores(network, image, settings.localise) if network else None
                masks = _run_masks(source, sample.id)
                found = judge_evidence(gather_evidence(predictor, source, rule, sample, image, masks), scores)
                file.write(quality_line(found))
                file.flush()


def expected_iou(probability: Float[np.ndarray, "*l h w"], mask: Bool[np.ndarray, "*l h w"]) -> float:
    """Return a mask's expected IoU with the truth, given each pixel's probability (0..1) of belonging to the class.

    It is the soft IoU (Ruzicka similarity): the sum over pixels of the smaller of mask and probability, divided by the
    sum of the larger. Probabilities are sharpened to p^2 / (p^2 + (1 - p)^2) first, because a network that finds a
    class likely is usually right. Masks of several classes count together. 1 if both are empty.
    """
    sharp = np.square(probability)
    sharp = sharp / (sharp + np.square(1 - probability))
    union = np.where(mask, np.float32(1), sharp).sum(dtype=np.float64)
    return float(np.where(mask, sharp, np.float32(0)).sum(dtype=np.float64) / union) if union else 1.0


def judge_evidence(evidence: Evidence, tag_scores: Float32[np.ndarray, " c"] | None) -> ImageQuality:
    """Return how reliable an image's mask is; `tag_scores` is None if there is no classification network.

    The segmentation network's probabilities, given the tags (`p_l / sum over background and tags of p_l`) and averaged
    over the views, are the probability of each tag at each pixel; the score of a mask is its expected IoU with them.
    A class that the image is not tagged with has probability 0.
    """
    ids = [0, *evidence.tags]
    given = evidence.views[:, ids] / np.maximum(evidence.views[:, ids].sum(1, keepdims=True), 1e-6)
    if evidence.untagged:
        given = np.pad(given, ((0, 0), (0, len(evidence.untagged)), (0, 0), (0, 0)))
    tags = (*evidence.tags, *evidence.untagged)
    mean = given.mean(0)[1:]
    masks = np.stack([evidence.decided == class_id for class_id in tags]) if tags else np.zeros_like(mean, bool)
    classes = {}
    for i, class_id in enumerate(tags):
        own, area = given[:, 1 + i], float(masks[i].mean())
        union = own.max(0).sum(dtype=np.float64)
        classes[class_id] = ClassQuality(
            score=expected_iou(mean[i], masks[i]),
            maps=expected_iou(evidence.maps[1 + i], masks[i]) if i < len(evidence.tags) else 0.0,
            stable=float(own.min(0).sum(dtype=np.float64) / union) if union else 1.0,
            unsure=float((masks[i] & evidence.unsure).mean() / area) if area else 0.0,
            area=area,
        )
    # By the segmentation network, a class is as likely present as in the 1% of pixels that show it best. The result is
    # the geometric mean of both networks.
    shown = np.clip(np.quantile(evidence.views.mean(0)[1:], 0.99, axis=(1, 2)), 0, 1)
    both = shown if tag_scores is None else np.sqrt(shown * tag_scores)
    present = {i: float(value) for i, value in enumerate(both, 1) if value >= FAINT}
    return ImageQuality(evidence.id, expected_iou(mean, masks), classes, present)


def gather_evidence(
    predictor: Predictor, source: Run, rule: MaskSettings, sample: Sample, image: Image.Image, masks: MaskPair
) -> Evidence:
    """Return the evidence for judging an image's masks (without and with unsure pixels) by the run `source`, at the
    size at which the network predicts.

    Raises:
        RunError: when the image's maps are missing or damaged.
    """
    picture = predictor.picture(image)
    size = (picture.shape[0], picture.shape[1])
    seen = view_probabilities(predictor.module, picture, VIEWS)
    decided, sure = (np.asarray(Image.fromarray(mask).resize(size[::-1], _NEAREST)) for mask in masks)
    maps = tagged_maps(map_file(source, sample.id), sample.tags)
    likely = label_probabilities(enlarge(maps, size), rule, tuple(background_cut(values, rule) for values in maps))
    return Evidence(sample.id, sample.tags, seen, decided, sure == VOID, likely)


_NEAREST = Image.Resampling.NEAREST


def _run_masks(source: Run, sample_id: str) -> MaskPair:
    """Return an image's masks in a run; raise DataError when they are missing or damaged."""
    decided, sure = (read_mask_file(mask_file(folder, sample_id)) for folder in (source.decided_masks, source.masks))
    return decided, sure


@torch.inference_mode()
def tag_scores(network: RcaNetwork, image: Image.Image, settings: LocaliseSettings) -> Float32[np.ndarray, " c"]:
    """Return the classification network's probability that each class is in an image.

    It is the mean of both heads over the image and its mirror image.
    """
    (view,) = views(network.backbone, image, dataclasses.replace(settings, scales=(1.0,))).pictures
    picture = to_tensor(view)[None].to(network.prototypes.device)
    seen = [network(given) for _, given in calls(picture, [False, True])]
    found = [head.sigmoid() for maps in seen for head in (maps.coarse_scores, maps.refined_scores)]
    scores: Float32[np.ndarray, " c"] = torch.cat(found).float().mean(0).cpu().numpy()
    return scores
