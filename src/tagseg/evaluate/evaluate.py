"""Score a run against true masks: pseudo-masks on training images, the segmenter on validation images."""

import dataclasses
import logging
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Literal, TypeVar

import msgspec
import numpy as np
from jaxtyping import UInt8

from tagseg.data.images import read_image, read_mask_file
from tagseg.data.prepare import Prepared
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.gain import calibration_images
from tagseg.evaluate.iou import confusion, iou
from tagseg.evaluate.scores import Evaluation, Scores, read_bound_scores, write_evaluation
from tagseg.masks.make import mask_sample
from tagseg.masks.mask_files import mask_file, write_classes, write_mask
from tagseg.run.decisions import decision_digests
from tagseg.run.folder import Run
from tagseg.segment.read_network import read_predictor
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track, silent

T = TypeVar("T")

log = logging.getLogger(__name__)


def evaluate(prepared: Prepared, run: Run, track: Track = silent) -> Evaluation:
    """Score the pseudo-masks and the segmenter, and predict masks of some training images for the report.

    Writes predictions/, evaluation.json and evaluation.md.

    Raises:
        DataError: when a true mask has a different size from its image, or unknown ids.
        RunError: when the run has no segmenter.
    """
    run.require("segment")
    dataset = prepared.dataset
    settings, classes = run.settings(), ("background", *dataset.classes)
    shown = examples(dataset.split("train"), settings.report.examples)
    segmenter = score_segmenter(prepared, run, settings, track, shown)
    # A segmenter trained on another tool's masks: the run has no pseudo-masks of its own.
    pseudo = None if settings.segment.labels else score_pseudo_masks(prepared, run, track)
    final = run.final()
    improved = score_pseudo_masks(prepared, run, track, final) if final != run else None
    calibrated = len(scored_samples(dataset, "train")) - len(scored_samples(dataset, "train", calibration_images(run)))
    result = Evaluation(classes, pseudo, segmenter, calibrated, improved, read_bound(run))
    write_evaluation(run, result)
    write_atomically(run.evaluation_file.with_suffix(".md"), result.table())
    return result


def score_segmenter(
    prepared: Prepared, run: Run, settings: Settings, track: Track = silent, also: Iterable[Sample] = ()
) -> Scores | None:
    """Predict the scored validation images, and the images `also`, into the run's `predictions`; return the scores of
    the former, None if there are none. Existing predictions are kept.

    Raises:
        DataError: when an image cannot be read, or a true mask has a different size from its image or unknown ids.
    """
    validation = scored_samples(prepared.dataset, "val")
    predictor = read_predictor(run.segmenter, settings.device)
    wanted = [*validation, *also]
    write_classes(run.predictions, prepared.dataset.classes)
    for sample in track(wanted, "predict", len(wanted)):
        target = mask_file(run.predictions, sample.id)
        if not target.exists():
            write_mask(target, predictor(read_image(sample.image, settings.data.max_megapixels)).mask)

    def predicted(sample: Sample) -> UInt8[np.ndarray, "h w"]:
        return read_mask_file(mask_file(run.predictions, sample.id))

    return score(prepared, validation, "val", predicted, track)


def bound_settings(settings: Settings) -> Settings:
    """Return the settings that affect the network trained on true masks; all others have their defaults."""
    train = TrainSettings(backbone=settings.train.backbone, weights=settings.train.weights)
    segment = dataclasses.replace(settings.segment, rounds=1, labels="")
    found = Settings(settings.seed, precision=settings.precision, workers=0, data=settings.data, train=train,
                     segment=segment)  # fmt: skip
    if segment.start == "classifier":  # which depends on how that one was trained
        return dataclasses.replace(found, maps=settings.maps, train=settings.train, rca=settings.rca)
    return found


def fits_bound(bound: Run, settings: Settings) -> bool:
    """Tell whether the network in `bound` was trained with the settings of a run, as far as they concern it."""
    try:
        return Settings.from_toml(bound.settings_file) == bound_settings(settings)
    except ValueError:
        return False


def read_bound(run: Run) -> Scores | None:
    """Return the scores of the run's network trained on true masks; None if there is none, or the settings differ."""
    bound = run.full_supervision
    if not bound.evaluation_file.exists():
        return None
    if not fits_bound(bound, run.settings()):
        log.warning("%s: left out, because it was trained with settings that differ from the run's", bound.root)
        return None
    return read_bound_scores(bound)


def score_pseudo_masks(
    prepared: Prepared, run: Run, track: Track = silent, made_in: Run | None = None
) -> Scores | None:
    """Score the pseudo-masks of the scored training images, of the run or of a round of its self-training (`made_in`);
    return None if there are no such images.

    So that the scores are not too high, unsure pixels are scored by their likelier label, masks that a person has
    reviewed are scored as they were before the review, and images used to calibrate the mask settings are left out.

    Raises:
        DataError: when a true mask has a different size from its image, or unknown ids.
    """
    scored = scored_samples(prepared.dataset, "train", calibration_images(run))
    source = made_in or run
    settings, reviewed, void = source.settings(), decision_digests(run), []

    def made(sample: Sample) -> UInt8[np.ndarray, "h w"]:
        if sample.id in reviewed:
            decided, sure = mask_sample(source, sample, prepared.sizes[sample.id], settings)
        else:
            decided, sure = (read_mask_file(mask_file(at, sample.id)) for at in (source.decided_masks, source.masks))
        void.append((sure == VOID).mean())
        return decided

    scores = score(prepared, scored, "train", made, track)
    return msgspec.structs.replace(scores, unsure_share=float(np.mean(void))) if scores else None


def scored_samples(dataset: Dataset, split: Literal["train", "val"], left_out: Container[str] = ()) -> list[Sample]:
    """Return the scored samples of a split: those with a true mask that counts, except the ids `left_out`."""
    scored = (sample for sample in dataset.split(split) if sample.mask is not None and sample.scored)
    return [sample for sample in scored if sample.id not in left_out]


def examples(samples: tuple[Sample, ...], count: int) -> list[Sample]:
    """Return up to `count` samples, evenly spaced over those with a scored mask (over all if there are none)."""
    pool = [sample for sample in samples if sample.mask is not None and sample.scored] or list(samples)
    return evenly_spaced(pool, count)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return up to `count` items in order, evenly spaced over the list and including the first and the last."""
    if count >= len(items):
        return list(items)
    if count <= 1:
        return list(items[:count])
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def score(
    prepared: Prepared,
    samples: list[Sample],
    split: Literal["train", "val"],
    predicted: Callable[[Sample], UInt8[np.ndarray, "h w"]],
    track: Track,
) -> Scores | None:
    """Score the masks that `predicted` returns for samples of a split against their true masks; None without samples.

    Raises:
        DataError: when a true mask has a different size from its image, or unknown ids.
    """
    if not samples:
        return None
    ids = len(prepared.dataset.classes) + 1
    matrix = np.zeros((ids, ids), np.int64)
    for sample in track(samples, f"score {split}", len(samples)):
        truth = load_mask(sample, prepared.dataset, prepared.sizes[sample.id])
        matrix += confusion(truth, predicted(sample), ids)
    result = iou(matrix)
    return Scores(result.miou, result.iou, len(samples), split)
