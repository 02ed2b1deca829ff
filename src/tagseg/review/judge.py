"""Judging the masks without truth, by what the trained networks see in the images."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from tagseg.data.images import read_image, read_mask_file
from tagseg.data.prepare import prepare
from tagseg.data.records import VOID, Sample
from tagseg.errors import RunError
from tagseg.masks.localise import views
from tagseg.masks.map_files import map_file, read_maps
from tagseg.masks.mask_files import mask_file
from tagseg.masks.probabilities import background_cut, label_probabilities
from tagseg.masks.resize import enlarge
from tagseg.rca.network import RcaNetwork
from tagseg.rca.train import load_network
from tagseg.review.scores import ClassQuality, ImageQuality, quality_line, read_quality, write_quality
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.segment.infer import probabilities
from tagseg.segment.predictor import Predictor, read_predictor
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.masks import MaskSettings
from tagseg.system.progress import Track, map_ahead, silent
from tagseg.training.device import choose_device
from tagseg.training.loading import to_tensor

LOOKS = ((1.0, False), (1.0, True), (0.75, False), (1.25, True))
"""Scale of the image, and whether it is mirrored, in which the segmentation network looks at it."""

SIDE = 512
"""Long side in pixels up to which images are judged; larger ones are reduced."""

READERS = 2
"""Threads that decode images while the networks run."""

FAINT = 0.02
"""Likelihoods of a class's presence below this are not kept: with 1,000 classes they would be most of the file."""


class Evidence(NamedTuple):
    """What an image's mask is judged by, all at one size (`h w` pixels): the probabilities that the segmentation
    network gives each of its ids in each look, the mask, which of its pixels are unsure, and the probabilities that the
    maps give background and each tag."""

    id: str
    tags: tuple[int, ...]
    looks: Float32[np.ndarray, "looks ids h w"]
    decided: UInt8[np.ndarray, "h w"]
    unsure: Bool[np.ndarray, "h w"]
    maps: Float32[np.ndarray, "l h w"]


def assess(run: Run, track: Track = silent) -> dict[str, ImageQuality]:
    """Judge the mask of every training image without truth, and return what was found by sample id, in data order.

    The masks are those of the last round of self-training, or the run's. What is found is kept in `run.quality_file`,
    image by image, so that an interrupted call continues; it is found anew when the segmentation network is another.

    Raises:
        RunError: when the run has no masks or no segmentation network, or a file of it is damaged.
        DataError: naming the image, when one cannot be read.
    """
    if labels := run.settings().segment.labels:
        raise RunError(f"{run.root}: learned from the masks in {labels}; there are none of its own to judge")
    run.require("masks")
    run.require("segment")
    samples = prepare(run).dataset.split("train")
    known = read_quality(run)
    todo = [sample for sample in samples if sample.id not in known]
    if todo:
        with hold_lock(run.root):
            # Written anew, so that it ends with a whole line.
            write_quality(run, known.values())
            known |= {one.id: one for one in _judged(todo, run, track)}
            run.note("quality")
    return {sample.id: known[sample.id] for sample in samples}


def _judged(samples: Sequence[Sample], run: Run, track: Track) -> Iterator[ImageQuality]:
    """Judge images, and append what is found to the run's file as soon as it is."""
    settings, source = run.settings(), run.final()
    predictor = read_predictor(run.segmenter, settings.device)
    predictor = dataclasses.replace(predictor, max_side=min(predictor.max_side or SIDE, SIDE))
    # Where another method made the maps, there is no network of the run's own that knows tags.
    network = load_network(run.network, choose_device(settings.device))[0] if run.done("train") else None
    rule = source.settings().mask_rule()

    def read(sample: Sample) -> tuple[Sample, Image.Image]:
        return sample, read_image(sample.image, settings.data.max_megapixels)

    with run.quality_file.open("a", encoding="utf-8") as file:
        images = map_ahead(samples, read, READERS)
        with contextlib.closing(images):
            for sample, image in track(images, "judge masks", len(samples)):
                scores = tag_scores(network, image, settings.localise) if network else None
                found = judge(look(predictor, source, rule, sample, image), scores)
                file.write(quality_line(found))
                file.flush()
                yield found


def expected_iou(probability: Float[np.ndarray, "*l h w"], mask: Bool[np.ndarray, "*l h w"]) -> float:
    """Return the IoU to expect of a mask with what is really there, pixel by pixel likely by `probability` (0..1).

    It is the sum of the lesser of the two over that of the greater (the soft IoU, or Ruzicka similarity), with p made
    p^2 / (p^2 + (1 - p)^2) first: what a network finds likelier than not, it mostly finds right. 1 where neither shows
    anything; with masks of several classes, over all of them together.
    """
    sharp = np.square(probability)
    sharp = sharp / (sharp + np.square(1 - probability))
    union = np.where(mask, np.float32(1), sharp).sum(dtype=np.float64)
    return float(np.where(mask, sharp, np.float32(0)).sum(dtype=np.float64) / union) if union else 1.0


def judge(seen: Evidence, tag_scores: Float32[np.ndarray, " c"] | None) -> ImageQuality:
    """Return how far to trust an image's mask; `tag_scores` is None where there is no classification network.

    The segmentation network's looks, averaged and given the tags (`p_l / sum over background and tags of p_l`), say how
    likely each tag is at each pixel; a mask is as good as its expected IoU with that.
    """
    ids = [0, *seen.tags]
    given = seen.looks[:, ids] / np.maximum(seen.looks[:, ids].sum(1, keepdims=True), 1e-6)
    mean = given.mean(0)[1:]
    masks = np.stack([seen.decided == class_id for class_id in seen.tags]) if seen.tags else np.zeros_like(mean, bool)
    classes = {}
    for i, class_id in enumerate(seen.tags):
        own, area = given[:, 1 + i], float(masks[i].mean())
        union = own.max(0).sum(dtype=np.float64)
        classes[class_id] = ClassQuality(
            score=expected_iou(mean[i], masks[i]),
            maps=expected_iou(seen.maps[1 + i], masks[i]),
            stable=float(own.min(0).sum(dtype=np.float64) / union) if union else 1.0,
            unsure=float((masks[i] & seen.unsure).mean() / area) if area else 0.0,
            area=area,
        )
    # A class is in the image as surely as the hundredth of its pixels that shows it best; both networks have a say.
    shown = np.clip(np.quantile(seen.looks.mean(0)[1:], 0.99, axis=(1, 2)), 0, 1)
    both = shown if tag_scores is None else np.sqrt(shown * tag_scores)
    present = {i: float(value) for i, value in enumerate(both, 1) if value >= FAINT}
    return ImageQuality(seen.id, expected_iou(mean, masks), classes, present)


def look(predictor: Predictor, source: Run, rule: MaskSettings, sample: Sample, image: Image.Image) -> Evidence:
    """Return what an image's mask in the run folder `source` is judged by, at the size at which the network predicts.

    Raises:
        RunError: when its maps are missing or damaged.
        DataError: when its masks are.
    """
    picture = predictor.picture(image)
    size = (picture.shape[1], picture.shape[2])
    pixels = picture[None].to(next(predictor.network.parameters()).device).float() / 255
    looks = []
    for scale, mirrored in LOOKS:
        found = probabilities(predictor.network, pixels.flip(-1) if mirrored else pixels, (scale,), flip=False)
        looks.append((found.flip(-1) if mirrored else found)[0].cpu().numpy())
    decided, sure = (
        np.asarray(Image.fromarray(read_mask_file(mask_file(folder, sample.id))).resize(size[::-1], _NEAREST))
        for folder in (source.decided_masks, source.masks)
    )
    maps, classes = read_maps(map_file(source, sample.id))
    likely = label_probabilities(enlarge(maps, size), rule, tuple(background_cut(values, rule) for values in maps))
    rows = [0, *(1 + classes.index(class_id) for class_id in sample.tags)]
    return Evidence(sample.id, sample.tags, np.stack(looks), decided, sure == VOID, likely[rows])


_NEAREST = Image.Resampling.NEAREST


@torch.inference_mode()
def tag_scores(network: RcaNetwork, image: Image.Image, settings: LocaliseSettings) -> Float32[np.ndarray, " c"]:
    """Return how likely (0..1) the classification network finds each class in an image: the mean of both of its heads,
    over the image and its mirror."""
    (view,) = views(network.backbone, image, dataclasses.replace(settings, scales=(1.0,))).pictures
    picture = to_tensor(view)[None].to(network.prototypes.device)
    looks = (network(picture), network(picture.flip(-1)))
    scores = torch.stack([head.sigmoid() for maps in looks for head in (maps.coarse_scores, maps.refined_scores)])
    found: Float32[np.ndarray, " c"] = scores.float().mean(0)[0].cpu().numpy()
    return found
