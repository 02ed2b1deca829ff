"""Make pseudo-masks: from maps to palette PNGs at the size of the image."""

import contextlib
import logging
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tagseg.crf.dense_crf import dense_crf
from tagseg.data.check import require_saliency
from tagseg.data.data_file import read_data_file
from tagseg.data.images import read_image, read_saliency
from tagseg.data.prepare import Prepared
from tagseg.data.records import VOID, Sample
from tagseg.errors import RunError
from tagseg.masks.fixed import hold_seeds, paint_strokes, seed_labels
from tagseg.masks.map_files import arrange_maps, map_file, read_maps
from tagseg.masks.mask_files import mask_file, write_classes, write_mask
from tagseg.masks.probabilities import (
    agreement,
    background_cut,
    decide_labels,
    label_probabilities,
    shift_background,
    with_saliency,
)
from tagseg.masks.resize import at_size, enlarge, refined_size, strips
from tagseg.masks.workers import Made, MaskWorkers, mask_workers
from tagseg.run.decisions import NEUTRAL, OPEN, Decision, accepted_masks, decision_of
from tagseg.run.folder import Run
from tagseg.run.taught import fixed_parts
from tagseg.settings.crf import CrfSettings
from tagseg.settings.masks import MaskSettings
from tagseg.settings.settings import Settings
from tagseg.system.progress import Track, images_per_s, silent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Masks:
    """The folders of the masks: `folder` with unsure pixels 255, `decided` with every pixel decided; class id i is
    `classes[i]`.

    images: number of images whose masks were made by this call. images_per_s: their rate, from the first handed over to
    the last one made. worker_peak_mb: the peak memory of the largest worker process (0 if the main process made them).
    """

    folder: Path
    decided: Path
    classes: tuple[str, ...]
    images: int
    images_per_s: float
    worker_peak_mb: float


@contextlib.contextmanager
def open_workers(prepared: Prepared, run: Run) -> Iterator[MaskWorkers]:
    """Yield worker processes for `make_masks`, so that masks can be made while maps are still being written."""
    settings = run.settings()

    def make(sample: Sample) -> Made:
        blank = make_mask(run, sample, prepared.sizes[sample.id], settings)
        return Made(sample.id, blank, 0.0)

    with mask_workers(run, prepared.sizes, settings.workers, make) as workers:
        yield workers


def make_masks(
    prepared: Prepared,
    run: Run,
    track: Track = silent,
    workers: MaskWorkers | None = None,
    again: Container[str] | None = None,
) -> Masks:
    """Write the pseudo-masks of every training image; images that already have masks are skipped.

    `workers` may already be working on some images; the rest are handed over now, and all are waited for. With `again`,
    the masks of these images are made, whether or not they exist, and no others; within a change of the run they are
    written aside.

    Raises:
        RunError: naming the image, when a mask cannot be made.
    """
    if run.settings().masks.saliency:
        require_saliency(prepared.dataset, run.settings().data, "masks.saliency")
    if workers is None:
        with open_workers(prepared, run) as own:
            return make_masks(prepared, run, track, own, again)
    samples = prepared.dataset.split("train")
    if again is None:
        for folder in (run.masks, run.decided_masks):
            write_classes(folder, prepared.dataset.classes)
    for sample in samples:
        if not has_masks(run, sample.id) if again is None else sample.id in again:
            workers.give(sample)
    made = list(track(workers.made(), "masks", len(workers.given)))
    pace = images_per_s(len(made), time.monotonic() - min(workers.given.values(), default=0.0))
    log.info("masks: %d images, %.1f images/s", len(made), pace)
    blank = {one.id for one in made if one.blank}
    if blank:
        log.warning(
            "%d of %d masks contain none of their image's tags, first %s; if there are many, check these tags, %s"
            "or lower the threshold (--masks.background threshold --masks.threshold 0.3)",
            len(blank), len(samples), next(sample.id for sample in samples if sample.id in blank),
            "" if run.settings().train.method == "frozen" else "train longer (--train.epochs) ",
        )  # fmt: skip
    classes = ("background", *prepared.dataset.classes)
    peak = max((one.peak_mb for one in made), default=0.0)
    return Masks(run.masks, run.decided_masks, classes, len(made), pace, peak)


def make_mask(run: Run, sample: Sample, size: tuple[int, int], settings: Settings) -> bool:
    """Write an image's two masks at `size` (height, width), from its maps or as a person has decided (see
    `reviewed_masks`); return whether they contain none of its tags although no person has decided so.

    Raises:
        RunError: naming the image, when it or its maps cannot be read, or its masks cannot be written.
    """
    try:
        decision = decision_of(run, sample.id)
        decided, sure = reviewed_masks(run, sample, size, settings, decision)
        write_mask(run.written(mask_file(run.masks, sample.id)), sure)
        write_mask(run.written(mask_file(run.decided_masks, sample.id)), decided)
    except MemoryError as error:
        raise RunError(
            f"{sample.image}: cannot make its mask: not enough memory; reduce --masks.max-side or --workers"
        ) from error
    except (ValueError, OSError) as error:
        raise RunError(f"{sample.image}: cannot make its mask: {error}") from error
    shown = not sample.tags or any((sure == class_id).any() for class_id in sample.tags)
    return not shown and not decision.changes_masks()


def reviewed_masks(
    run: Run, sample: Sample, size: tuple[int, int], settings: Settings, decision: Decision
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
    """Return the masks of an image (every pixel decided; unsure pixels 255) as `decision` requires: accepted masks as
    they were accepted, rejected masks 255 everywhere, others without the disabled classes and with its threshold."""
    if decision.verdict == "accepted" and (kept := accepted_masks(run, sample.id, size)) is not None:
        return kept
    if decision.verdict == "rejected":
        return np.full(size, VOID, np.uint8), np.full(size, VOID, np.uint8)
    return mask_sample(run, sample, size, settings, decision)


def mask_sample(
    run: Run, sample: Sample, size: tuple[int, int], settings: Settings, decision: Decision = OPEN
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
    """Return the masks of an image of a run at `size` (height, width), from all of the run's evidence (see
    `mask_image`).

    `decision` contributes its disabled classes and its threshold.

    Raises:
        DataError: when the image or its saliency map cannot be read, or the settings require a saliency map that is
            missing.
    """
    maps, classes = read_maps(run.newest(map_file(run, sample.id)))
    if not set(sample.tags) <= set(classes):  # a person added tags
        every = tuple(sorted({*classes, *sample.tags}))
        maps, classes = arrange_maps(maps, classes, every), every
    parts = tuple(fixed_parts(run, sample.id).values())
    shown = [i for i, class_id in enumerate(classes) if class_id not in decision.off]
    maps, classes = maps[shown], tuple(classes[i] for i in shown)
    rule = settings.mask_rule()
    small, limit = refined_size(size, rule), settings.data.max_megapixels
    image = saliency = None
    if settings.crf.steps:
        picture = read_image(sample.image, limit, max(small))
        image = np.asarray(picture.resize(small[::-1], Image.Resampling.BILINEAR))
    if rule.saliency:
        assert sample.saliency is not None, f"{sample.id} has no saliency map"
        saliency = np.asarray(read_saliency(sample.saliency, small, limit))
    if not parts:
        return mask_image(image, maps, classes, size, rule, settings.crf, saliency, decision.threshold)
    home = Run(run.review.parent)  # a round of self-training has no data.json of its own
    ids = {name: number for number, name in enumerate(read_data_file(home).classes, 1)}
    seeds = seed_labels(parts, ids, classes, small)
    decided, sure = mask_image(image, maps, classes, size, rule, settings.crf, saliency, decision.threshold, seeds)
    return paint_strokes(decided, parts, ids, classes), paint_strokes(sure, parts, ids, classes)


def mask_image(
    image: UInt8[np.ndarray, "h w 3"] | None,
    maps: UInt8[np.ndarray, "k y x"],
    classes: tuple[int, ...],
    size: tuple[int, int],
    settings: MaskSettings,
    crf: CrfSettings | None = None,
    saliency: UInt8[np.ndarray, "h w"] | None = None,
    threshold: float = NEUTRAL,
    seeds: UInt8[np.ndarray, "h w"] | None = None,
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
    """Return an image's mask with every pixel decided, and its mask with unsure pixels 255, both at `size`.

    `maps` (0..255 = 0..peak) of `classes` are enlarged to `refined_size` and turned into label probabilities;
    `threshold` moves these for or against background (see `shift_background`). A `saliency` map replaces their
    background, and with `image` and `crf` the dense CRF refines them, except where `seeds` fix a label (0 background,
    then `classes` in order; 255: free). The scores are then enlarged to `size` (height,
    width) and decided one strip of rows at a time, so that only the masks exist at full size.
    """
    cuts = tuple(background_cut(values, settings) for values in maps)
    before = label_probabilities(enlarge(maps, refined_size(size, settings)), settings, cuts)
    before = shift_background(before, threshold)
    after = before if saliency is None else with_saliency(before, saliency)
    if seeds is not None:
        before, after = (hold_seeds(one, seeds) for one in (before, after))
    if image is not None and crf is not None and crf.steps and classes:
        after = dense_crf(after, image, at_size(crf, image.shape[:2]))
        after = after if seeds is None else hold_seeds(after, seeds)
    scores = np.concatenate([after, agreement(before, after)])
    labels = len(after)
    decided, sure = np.empty(size, np.uint8), np.empty(size, np.uint8)
    for rows, strip in strips(scores, size):
        decided[rows], unsure = decide_labels(strip[:labels], strip[labels:], classes, settings.unsure)
        sure[rows] = np.where(unsure, VOID, decided[rows])
    return decided, sure


def has_masks(run: Run, sample_id: str) -> bool:
    """Return whether both masks of an image exist."""
    return all(mask_file(folder, sample_id).exists() for folder in (run.masks, run.decided_masks))
