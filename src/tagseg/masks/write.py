"""Pseudo-masks: maps to palette PNGs at the image's own size."""

import contextlib
import dataclasses
import io
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from tagseg.data.check import require_saliency
from tagseg.data.images import read_image, read_saliency
from tagseg.data.prepare import Prepared
from tagseg.data.records import VOID, Sample
from tagseg.masks.background import (
    against_background,
    agreement,
    cut,
    decide,
    label_probabilities,
    with_saliency,
)
from tagseg.masks.crf import dense_crf
from tagseg.masks.decisions import NEUTRAL, OPEN, Decision, accepted_masks, decision_of
from tagseg.masks.maps import map_file, read_maps
from tagseg.masks.palette import png_palette
from tagseg.masks.pool import Made, MaskWorkers, mask_workers
from tagseg.progress import Track, images_per_s, silent
from tagseg.run import Run, RunError, write_atomically
from tagseg.settings import Settings
from tagseg.settings_stages import CrfSettings, MaskSettings

log = logging.getLogger(__name__)

_STRIP = 1 << 20
"""Map values that are enlarged at a time: 4 MB, and as much again a few times while they are decided."""

REFERENCE_SIDE = 500
"""Long side in pixels of the images that the reach of the CRF's kernels is given for: that of Pascal VOC's."""


@dataclass(frozen=True)
class Masks:
    """Where the masks lie: with unsure pixels 255, and with every pixel decided; class id i is `classes[i]`.

    images: how many were made now. images_per_s: of these, from the first that was handed over to the last.
    worker_peak_mb: the most memory that one worker process took (0 where the main process made them).
    """

    folder: Path
    decided: Path
    classes: tuple[str, ...]
    images: int
    images_per_s: float
    worker_peak_mb: float


@contextlib.contextmanager
def open_workers(prepared: Prepared, run: Run) -> Iterator[MaskWorkers]:
    """Yield the worker processes that `make_masks` takes, so that masks can be made while maps are still written."""
    settings = run.settings()

    def make(sample: Sample) -> Made:
        blank = make_mask(run, sample, prepared.sizes[sample.id], settings)
        return Made(sample.id, blank, 0.0)

    with mask_workers(run, prepared.sizes, settings.workers, make) as workers:
        yield workers


def make_masks(prepared: Prepared, run: Run, track: Track = silent, workers: MaskWorkers | None = None) -> Masks:
    """Write every training image's pseudo-mask; images whose masks are there already are skipped.

    `workers` may have been given images before; the rest are handed over now, and all are waited for.

    Raises:
        RunError: naming the image, when one cannot be made.
    """
    if run.settings().masks.saliency:
        require_saliency(prepared.dataset, run.settings().data, "masks.saliency")
    if workers is None:
        with open_workers(prepared, run) as own:
            return make_masks(prepared, run, track, own)
    samples = prepared.dataset.split("train")
    for folder in (run.masks, run.decided_masks):
        write_classes(folder, prepared.dataset.classes)
    for sample in samples:
        if not has_masks(run, sample.id):
            workers.give(sample)
    made = list(track(workers.made(), "masks", len(workers.given)))
    pace = images_per_s(len(made), time.monotonic() - min(workers.given.values(), default=0.0))
    log.info("masks: %d images, %.1f a second", len(made), pace)
    blank = {one.id for one in made if one.blank}
    if blank:
        log.warning(
            "%d of %d masks hold none of their image's tags, first %s; if they are many, train longer (--train.epochs) "
            "or cut lower (--masks.background threshold --masks.threshold 0.3)",
            len(blank), len(samples), next(sample.id for sample in samples if sample.id in blank),
        )  # fmt: skip
    classes = ("background", *prepared.dataset.classes)
    peak = max((one.peak_mb for one in made), default=0.0)
    return Masks(run.masks, run.decided_masks, classes, len(made), pace, peak)


def make_mask(run: Run, sample: Sample, size: tuple[int, int], settings: Settings) -> bool:
    """Write an image's two masks at `size` (height, width); tells whether they hold none of its tags, unseen by anyone.

    They come from its maps, or are what a person has made of them (see `reviewed_masks`).

    Raises:
        RunError: naming the image, when it or its maps cannot be read or its masks not be written.
    """
    try:
        decision = decision_of(run, sample.id)
        decided, sure = reviewed_masks(run, sample, size, settings, decision)
        write_mask(mask_file(run.masks, sample.id), sure)
        write_mask(mask_file(run.decided_masks, sample.id), decided)
    except MemoryError as error:
        raise RunError(
            f"{sample.image}: no mask could be made of it: not enough memory; lower --masks.max-side or --workers"
        ) from error
    except (ValueError, OSError) as error:
        raise RunError(f"{sample.image}: no mask could be made of it: {error}") from error
    return not decision.changes_masks() and not any((sure == class_id).any() for class_id in sample.tags)


def reviewed_masks(
    run: Run, sample: Sample, size: tuple[int, int], settings: Settings, decision: Decision
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
    """Return the masks of an image (every pixel decided; unsure ones 255) as `decision` wants them: accepted ones as
    they were accepted, rejected ones 255 everywhere, others without the classes that are off and by the threshold."""
    if decision.verdict == "accepted" and (kept := accepted_masks(run, sample.id, size)) is not None:
        return kept
    if decision.verdict == "rejected":
        return np.full(size, VOID, np.uint8), np.full(size, VOID, np.uint8)
    return mask_sample(run, sample, size, settings, decision)


def mask_sample(
    run: Run, sample: Sample, size: tuple[int, int], settings: Settings, decision: Decision = OPEN
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
    """Return the masks of an image of a run at `size` (height, width), by all of the run's evidence: see `mask_image`.

    Of `decision` the classes that are off and the threshold count.

    Raises:
        DataError: when the image or its saliency map cannot be read, or the latter is missing and asked for.
    """
    maps, classes = read_maps(map_file(run, sample.id))
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
    return mask_image(image, maps, classes, size, rule, settings.crf, saliency, decision.threshold)


def mask_image(
    image: UInt8[np.ndarray, "h w 3"] | None,
    maps: UInt8[np.ndarray, "k y x"],
    classes: tuple[int, ...],
    size: tuple[int, int],
    settings: MaskSettings,
    crf: CrfSettings | None = None,
    saliency: UInt8[np.ndarray, "h w"] | None = None,
    threshold: float = NEUTRAL,
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
    """Return an image's mask with every pixel decided, and the one whose unsure pixels are 255, both at `size`.

    `maps` (0..255 = 0..peak) of `classes` are enlarged to `refined_size` and become probabilities of labels, which
    `threshold` moves for or against background (see `against_background`). There they take background from `saliency`
    where that is given, and are refined by the image with the dense CRF where both are. Then they are enlarged to
    `size` (height, width) and decided a strip of rows at a time: at full size only the masks exist.
    """
    cuts = tuple(cut(values, settings) for values in maps)
    before = label_probabilities(enlarge(maps, refined_size(size, settings)), settings, cuts)
    before = against_background(before, threshold)
    after = before if saliency is None else with_saliency(before, saliency)
    if image is not None and crf is not None and crf.steps and classes:
        after = dense_crf(after, image, at_size(crf, image.shape[:2]))
    scores = np.concatenate([after, agreement(before, after)])
    labels = len(after)
    decided, sure = np.empty(size, np.uint8), np.empty(size, np.uint8)
    for rows, strip in strips(scores, size):
        decided[rows], unsure = decide(strip[:labels], strip[labels:], classes, settings.unsure)
        sure[rows] = np.where(unsure, VOID, decided[rows])
    return decided, sure


def at_size(crf: CrfSettings, size: tuple[int, int]) -> CrfSettings:
    """Return the settings with the reach of both kernels in pixels of an image of `size`: they are given for images
    whose long side is `REFERENCE_SIDE`, so that masks do not depend on how large an image is stored."""
    factor = max(size) / REFERENCE_SIDE
    return dataclasses.replace(crf, gaussian_sxy=crf.gaussian_sxy * factor, bilateral_sxy=crf.bilateral_sxy * factor)


def refined_size(size: tuple[int, int], settings: MaskSettings) -> tuple[int, int]:
    """Return the (height, width) at which the maps of an image of `size` are refined: its own up to `max_side`."""
    reduce = min(1.0, settings.max_side / max(size))
    return max(round(size[0] * reduce), 1), max(round(size[1] * reduce), 1)


def strips(
    scores: Float[np.ndarray, "k h w"], size: tuple[int, int]
) -> Iterator[tuple[slice, Float[np.ndarray, "k rows W"]]]:
    """Yield scores enlarged to `size` (height, width), bilinear, a strip of rows at a time: which rows, and the scores.

    At `size` itself only a strip exists.
    """
    height = max(_STRIP // max(len(scores) * size[1], 1), 1)
    for top in range(0, size[0], height):
        rows = slice(top, min(top + height, size[0]))
        yield rows, _strip(scores, size, rows)


def _strip(scores: Float[np.ndarray, "k h w"], size: tuple[int, int], rows: slice) -> Float[np.ndarray, "k rows W"]:
    """The given rows of scores enlarged to `size`, without enlarging the others."""
    height, width = scores.shape[1:]
    if (height, width) == size:
        return scores[:, rows]
    # The part that the rows cover; neighbours beyond it still count, so that strips join without a seam.
    box = (0, rows.start * height / size[0], width, rows.stop * height / size[0])
    target = size[1], rows.stop - rows.start
    strips = [Image.fromarray(values).resize(target, Image.Resampling.BILINEAR, box) for values in scores]
    return np.stack([np.asarray(strip) for strip in strips]) if strips else np.zeros((0, *target[::-1]), np.float32)


def enlarge(maps: UInt8[np.ndarray, "k h w"], size: tuple[int, int]) -> Float[np.ndarray, "k H W"]:
    """Return maps at `size` (height, width), bilinear, as shares of the peak 0..1."""
    large = [
        Image.fromarray(values.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR) for values in maps
    ]
    return np.stack([np.asarray(values) for values in large]) / 255 if large else np.zeros((0, *size), np.float32)


def has_masks(run: Run, sample_id: str) -> bool:
    """Tell whether both masks of an image are there."""
    return all(mask_file(folder, sample_id).exists() for folder in (run.masks, run.decided_masks))


def mask_file(folder: Path, sample_id: str) -> Path:
    """Return where an image's mask lies: named like the image."""
    return folder / f"{sample_id}.png"


def write_mask(path: Path, mask: UInt8[np.ndarray, "h w"]) -> None:
    """Write a mask as a palette PNG in VOC's colours."""
    write_atomically(path, mask_png(mask))


def mask_png(mask: UInt8[np.ndarray, "h w"]) -> bytes:
    """Return a mask as a palette PNG in VOC's colours."""
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette(png_palette())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def write_classes(folder: Path, classes: Sequence[str]) -> None:
    """Write classes.json: what the values in a folder's masks mean."""
    names = {"0": "background", **{str(i): name for i, name in enumerate(classes, 1)}, "255": "void"}
    write_atomically(folder / "classes.json", json.dumps(names, indent=1, ensure_ascii=False) + "\n")
