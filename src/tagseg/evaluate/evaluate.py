"""Scoring a run where true masks exist: pseudo-masks on training images, the segmenter on validation images."""

import dataclasses
import json
import logging
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import UInt8

from tagseg.data.images import load_mask, read_image, read_mask_file
from tagseg.data.prepare import Prepared
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.errors import RunError
from tagseg.evaluate.gain import calibration_images
from tagseg.evaluate.iou import confusion, iou
from tagseg.masks.make import mask_sample
from tagseg.masks.mask_files import mask_file, write_classes, write_mask
from tagseg.run.decisions import decision_digests
from tagseg.run.folder import Run
from tagseg.segment.predictor import read_predictor
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track, silent
from tagseg.system.untrusted import check_shape, read_json

T = TypeVar("T")

log = logging.getLogger(__name__)

_SCORES = {"miou": float, "iou": [(float, None)], "images": int, "split": str, "unsure_share?": (float, None)}
_PARTS = dict.fromkeys(("pseudo_masks?", "segmenter?", "self_trained?", "full_supervision?"), (None, _SCORES))
_EVALUATION = {"classes": [str], "calibrated?": int, **_PARTS}


@dataclass(frozen=True)
class Scores:
    """Pooled mIoU (background included, void left out) over `images` images of a split; `iou[i]` of class id i, None
    for a class in neither truth nor masks. `unsure_share` is the share of pixels that pseudo-masks leave void: they
    are scored by their likelier label all the same."""

    miou: float
    iou: tuple[float | None, ...]
    images: int
    split: str
    unsure_share: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """A run's figures; None where no true masks exist. `calibrated` is how many training images would be scored, had
    `tagseg calibrate` not seen their true masks. `self_trained`: the pseudo-masks that the last round of self-training
    learned from, None where there was one round alone. `full_supervision`: the same network trained on true masks (see
    tagseg.studies.full_supervision), None where it was not."""

    classes: tuple[str, ...]
    pseudo_masks: Scores | None
    segmenter: Scores | None
    calibrated: int = 0
    self_trained: Scores | None = None
    full_supervision: Scores | None = None

    def share(self) -> float | None:
        """Return the share of full supervision's mIoU that the segmenter reaches, None where either is not known."""
        return self.segmenter.miou / self.full_supervision.miou if self.segmenter and self.full_supervision else None

    def table(self) -> str:
        """Return the figures as a Markdown table, in per cent."""
        columns = [
            ("pseudo-masks", self.pseudo_masks),
            ("pseudo-masks after self-training", self.self_trained),
            ("segmenter", self.segmenter),
            ("full supervision", self.full_supervision),
        ]
        shown = [(f"{name} ({scores.images} {scores.split} images)", scores) for name, scores in columns if scores]
        left_out = f"Not scored: {self.calibrated} training images whose true masks `tagseg calibrate` has seen.\n"
        if not shown:
            return left_out if self.calibrated else "No true masks in the data set: nothing to score.\n"
        rows = [
            "| class | " + " | ".join(name for name, _ in shown) + " |",
            "|---|" + "---:|" * len(shown),
            "| **mean IoU** | " + " | ".join(f"**{100 * scores.miou:.1f}**" for _, scores in shown) + " |",
        ]
        for i, name in enumerate(self.classes):
            cells = [scores.iou[i] for _, scores in shown]
            safe = name.replace("|", "\\|")
            rows.append(f"| {safe} | " + " | ".join("-" if c is None else f"{100 * c:.1f}" for c in cells) + " |")
        share = self.share()
        reached = "" if share is None else f"\nThe segmenter reaches {100 * share:.1f} % of full supervision.\n"
        return "\n".join(rows) + "\n" + reached + (f"\n{left_out}" if self.calibrated else "")


def evaluate(prepared: Prepared, run: Run, track: Track = silent) -> Evaluation:
    """Score pseudo-masks and segmenter, and predict the validation images and some training images for the report.

    Writes predictions/, evaluation.json and evaluation.md.

    Raises:
        DataError: when a true mask has another size than its image, or unknown ids.
        RunError: when the run has no segmenter.
    """
    run.require("segment")
    dataset = prepared.dataset
    settings, classes = run.settings(), ("background", *dataset.classes)
    shown = examples(dataset.split("train"), settings.report.examples)
    segmenter = score_segmenter(prepared, run, settings, track, shown)
    # With masks of another tool there are none of the run's own.
    pseudo = None if settings.segment.labels else score_pseudo_masks(prepared, run, track)
    rounds = settings.segment.rounds
    improved = score_pseudo_masks(prepared, run, track, run.round(rounds - 1)) if rounds > 1 else None
    calibrated = len(scored_samples(dataset, "train")) - len(scored_samples(dataset, "train", calibration_images(run)))
    result = Evaluation(classes, pseudo, segmenter, calibrated, improved, read_bound(run))
    write_atomically(run.evaluation_file, json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False))
    write_atomically(run.evaluation_file.with_suffix(".md"), result.table())
    return result


def score_segmenter(
    prepared: Prepared, run: Run, settings: Settings, track: Track = silent, also: Iterable[Sample] = ()
) -> Scores | None:
    """Predict the validation images whose true masks count, and `also` others, into the run's `predictions`, and score
    the former; None where there are none. Predictions that are there are kept.

    Raises:
        DataError: when an image cannot be read, or a true mask has another size than its image, or unknown ids.
    """
    validation = scored_samples(prepared.dataset, "val")
    predictor = read_predictor(run.segmenter, settings.device)
    wanted = [*validation, *also]
    write_classes(run.predictions, prepared.dataset.classes)
    for sample in track(wanted, "predict", len(wanted)):
        target = mask_file(run.predictions, sample.id)
        if not target.exists():
            write_mask(target, predictor(read_image(sample.image, settings.data.max_megapixels)))

    def predicted(sample: Sample) -> UInt8[np.ndarray, "h w"]:
        return read_mask_file(mask_file(run.predictions, sample.id))

    return score(prepared, validation, "val", predicted, track)


def bound_settings(settings: Settings) -> Settings:
    """Return the settings that count for the network trained on true masks; all others are at their defaults."""
    train = TrainSettings(backbone=settings.train.backbone, weights=settings.train.weights)
    segment = dataclasses.replace(settings.segment, rounds=1, labels="")
    return Settings(settings.seed, precision=settings.precision, workers=0, data=settings.data, train=train,
                    segment=segment)  # fmt: skip


def read_bound(run: Run) -> Scores | None:
    """Return the scores of the run's network trained on true masks; None where it was not, or with other settings."""
    bound = run.full_supervision
    if not bound.evaluation_file.exists():
        return None
    if bound.settings_file.read_text(encoding="utf-8") != bound_settings(run.settings()).to_toml():
        log.warning("%s: trained with other settings than the run's now, left out", bound.root)
        return None
    return _scores(_read(bound.evaluation_file, _SCORES))


def score_pseudo_masks(
    prepared: Prepared, run: Run, track: Track = silent, made_in: Run | None = None
) -> Scores | None:
    """Score the pseudo-masks of the training images whose true masks count for it; None where there are none.

    They are those of the run, or of a round of its self-training (`made_in`).

    Unsure pixels are scored by their likelier label, masks that a person decided about as they were before, and images
    that the mask settings were calibrated with are left out: anything else would flatter.

    Raises:
        DataError: when a true mask has another size than its image, or unknown ids.
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
    return dataclasses.replace(scores, unsure_share=float(np.mean(void))) if scores else None


def scored_samples(dataset: Dataset, split: Literal["train", "val"], left_out: Container[str] = ()) -> list[Sample]:
    """Return the samples of a split that are scored: those whose true mask counts, but for the ids `left_out`."""
    scored = (sample for sample in dataset.split(split) if sample.mask is not None and sample.scored)
    return [sample for sample in scored if sample.id not in left_out]


def examples(samples: tuple[Sample, ...], count: int) -> list[Sample]:
    """Choose up to `count` samples, evenly spaced over those with a scored mask (over all if there are none)."""
    pool = [sample for sample in samples if sample.mask is not None and sample.scored] or list(samples)
    return evenly_spaced(pool, count)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return up to `count` items, evenly spaced over the list, first and last included, in order."""
    if count >= len(items):
        return list(items)
    if count <= 1:
        return list(items[:count])
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def read_evaluation(run: Run) -> Evaluation:
    """Return a run's figures.

    Raises:
        RunError: when the run has not been evaluated, or the file of its figures is damaged.
    """
    run.require("evaluate")
    values = read_figures(run)
    parts = ("pseudo_masks", "segmenter", "self_trained", "full_supervision")
    pseudo, segmenter, improved, full = (_scores(values.get(part)) for part in parts)
    for scores in (pseudo, segmenter, improved, full):
        if scores and len(scores.iou) != len(values["classes"]):
            raise RunError(
                f"{run.evaluation_file}: damaged ({len(scores.iou)} IoUs of {len(values['classes'])} classes); "
                "evaluate again with --force"
            )
    return Evaluation(tuple(values["classes"]), pseudo, segmenter, values.get("calibrated", 0), improved, full)


def read_figures(run: Run) -> dict[str, Any]:
    """Return what evaluation.json holds, checked.

    Raises:
        RunError: when the file is missing or damaged.
    """
    return _read(run.evaluation_file, _EVALUATION)


def _read(file: Path, shape: dict[str, Any]) -> dict[str, Any]:
    try:
        values = read_json(file)
        check_shape(values, shape)
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: missing or damaged ({error}); evaluate again with --force") from error
    found: dict[str, Any] = values
    return found


def _scores(values: dict[str, Any] | None) -> Scores | None:
    if not values:
        return None
    known = {name: value for name, value in values.items() if name in Scores.__dataclass_fields__}
    return Scores(**{**known, "iou": tuple(values["iou"])})


def score(
    prepared: Prepared,
    samples: list[Sample],
    split: str,
    predicted: Callable[[Sample], UInt8[np.ndarray, "h w"]],
    track: Track,
) -> Scores | None:
    """Score masks of a split's samples against their true ones; `predicted` returns an image's. None without samples.

    Raises:
        DataError: when a true mask has another size than its image, or unknown ids.
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
