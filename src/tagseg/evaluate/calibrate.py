"""Choose mask settings with a small number of true masks: calibration images, candidates and pixel counts."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from tagseg.data.check import require_saliency
from tagseg.data.companions import with_files
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import Sample
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError
from tagseg.evaluate.gain import Calibration, Candidate, choices, measure_gain, pooled_miou, read_calibration
from tagseg.evaluate.iou import confusion
from tagseg.masks.make import mask_sample
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.run.open import draft_settings
from tagseg.settings.crf import CrfSettings
from tagseg.settings.masks import MaskSettings
from tagseg.settings.settings import Settings
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)

FEWEST, MOST = 5, 50
"""Number of calibration images: fewer are not enough to decide, more take longer without much benefit."""

TRIED_CUTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Values of masks.threshold to try."""

POWERS = (1.0, 2.0, 4.0)
"""Values of masks.power to try."""

COMPATS, COLOURS = (5.0, 10.0), (8.0, 13.0)
"""Values of crf.bilateral_compat and crf.bilateral_srgb to try, in all combinations."""

Counts = dict[Settings, Int[np.ndarray, "images 2 ids"]]
"""For each candidate, the number of pixels in intersection (0) and union (1), by image and class id."""


def calibrate(root: str | Path, masks: str | Path, apply: bool = False, track: Track = silent) -> Calibration:
    """Choose a run's mask settings with true masks of some of its training images, and estimate how much they gain.

    There are two rounds: the first finds the best background rule with the run's own dense CRF (see `backgrounds`), the
    second the best CRF for this rule (see `with_crfs`). Both are repeated without each image in turn, which then gives
    an independent judgement of the choice. The candidates, the gain of the choice with its interval, and the advice are
    written to calibration.json and calibration.md in the run. The images are never scored again.

    Args:
        root: a run folder whose stage localise has finished.
        masks: folder of PNG files named like training images, with the values of the data set's own masks (255: void).
        apply: if the gain is certain, store the settings in the run and discard its masks and later stages.
        track: how to report progress.

    Raises:
        RunError: when the stage localise has not finished, or another process is working on the run.
        DataError: when there are fewer than 5 such masks, or a mask has a different size from its image or unknown ids.
    """
    run = Run(Path(root))
    run.require("localise")
    asked = f"calibrate {Path(masks).resolve()}{' --apply' if apply else ''}"
    with hold_lock(run.root) as finished:
        if finished == asked:  # a killed one of the same words had chosen: its settings are the present ones now
            return read_calibration(run)
        return _calibrate(run, Path(masks), apply, track, asked)


def _calibrate(run: Run, masks: Path, apply: bool, track: Track, asked: str) -> Calibration:
    settings, prepared = run.settings(), prepare(run)
    if settings.masks.saliency:
        require_saliency(prepared.dataset, settings.data, "masks.saliency")
    samples = calibration_samples(prepared, run, masks)
    first = backgrounds(settings)
    counts = count_pixels(prepared, run, samples, first, track, "background rules")
    favourites = [first[best] for best in choices(np.stack([counts[one] for one in first]))]
    groups = {favourite: with_crfs(favourite) for favourite in dict.fromkeys(favourites)}
    second = [one for group in groups.values() for one in group if one not in counts]
    counts |= count_pixels(prepared, run, samples, second, track, "dense CRFs")
    best = {one: choices(np.stack([counts[other] for other in group])) for one, group in groups.items()}
    chosen = [groups[favourite][best[favourite][fold]] for fold, favourite in enumerate(favourites)]
    found = _judge(settings, samples, counts, chosen)
    with run.changing(asked) as (_, draft):
        found.save(draft)
        if apply and found.recommended != settings:
            draft_settings(run, draft, found.recommended, force=True, first="masks")
    return found


def calibration_samples(prepared: Prepared, run: Run, masks: Path) -> list[Sample]:
    """Return the training images that have a true mask in the folder `masks`, each with that mask.

    Raises:
        DataError: when `masks` is not a folder or is inside the run, has fewer than 5 such masks, or a mask has a
            different size from its image or unknown ids.
    """
    if not masks.is_dir():
        raise DataError(f"--masks {masks}: not a folder; expected a folder of true masks named like training images")
    if masks.resolve().is_relative_to(run.root.resolve()):
        raise DataError(f"--masks {masks}: expected true masks, but masks inside the run folder are tagseg's own")
    dataset = prepared.dataset
    bare = tuple(dataclasses.replace(sample, mask=None) for sample in dataset.samples)
    named = with_files(dataclasses.replace(dataset, samples=bare), dataset.root, masks.resolve(), None)
    samples = [sample for sample in named if sample.split == "train" and sample.mask is not None]
    files = sum(1 for _ in masks.rglob("*.png"))
    if len(samples) < FEWEST:
        example = dataset.split("train")[0].id
        raise DataError(
            f"--masks {masks}: expected at least {FEWEST} PNG files named like training images, such as {example}.png; "
            f"found {len(samples)} among {files} PNG files"
        )
    for sample in samples:
        load_mask(sample, dataset, prepared.sizes[sample.id])
    if files > len(samples):
        log.warning("%s: %d of its %d PNG files match no training image", masks, files - len(samples), files)
    if len(samples) > MOST:
        log.warning(
            "%d calibration images: %d are enough; more take longer, and calibration images are never scored again",
            len(samples), MOST,
        )  # fmt: skip
    return samples


def backgrounds(settings: Settings) -> list[Settings]:
    """Return the run's settings, then the same settings with each of the other background rules.

    | rule | values |
    |---|---|
    | rest | posterior maps only |
    | otsu | |
    | threshold | `TRIED_CUTS` |
    | power | `POWERS` |
    """
    own = settings.mask_rule()
    rules = [dataclasses.replace(own, background="rest")] if settings.has_posteriors() else []
    rules += [dataclasses.replace(own, background="otsu")]
    rules += [dataclasses.replace(own, background="threshold", threshold=value) for value in TRIED_CUTS]
    rules += [dataclasses.replace(own, background="power", power=value) for value in POWERS]
    others = [rule for rule in rules if _rule_words(rule) != _rule_words(own)]
    return [settings, *(dataclasses.replace(settings, masks=rule) for rule in others)]


def with_crfs(settings: Settings) -> list[Settings]:
    """Return the settings, then the same settings with each of the other dense CRFs: none, or a bilateral weight from
    `COMPATS` with a standard deviation from `COLOURS` in grey levels."""
    own = settings.crf
    steps = own.steps or CrfSettings().steps
    crfs = [dataclasses.replace(own, steps=0)]
    crfs += [
        dataclasses.replace(own, steps=steps, bilateral_compat=compat, bilateral_srgb=srgb)
        for compat in COMPATS
        for srgb in COLOURS
    ]
    others = [crf for crf in crfs if _crf_words(crf) != _crf_words(own)]
    return [settings, *(dataclasses.replace(settings, crf=crf) for crf in others)]


def count_pixels(
    prepared: Prepared, run: Run, samples: Sequence[Sample], candidates: Sequence[Settings], track: Track, title: str
) -> Counts:
    """Make the mask of every image with every candidate, and count its pixels in intersection and union with the true
    mask.

    As in `evaluate`, unsure pixels count by their likelier label. The masks are not kept.
    """
    ids = len(prepared.dataset.classes) + 1
    counts = {candidate: np.zeros((len(samples), 2, ids), np.int64) for candidate in candidates}

    def pairs() -> Iterator[None]:
        for i, sample in enumerate(samples):
            size = prepared.sizes[sample.id]
            truth = load_mask(sample, prepared.dataset, size)
            for candidate in candidates:
                matrix = confusion(truth, mask_sample(run, sample, size, candidate)[0], ids)
                hit = np.diag(matrix)
                counts[candidate][i] = hit, matrix.sum(0) + matrix.sum(1) - hit
                yield

    for _ in track(pairs(), title, len(samples) * len(candidates)):
        pass
    return counts


def flags(old: Settings, new: Settings) -> str:
    """Return the command-line flags that change the mask settings of `old` into those of `new`."""
    pairs = [(section, getattr(old, section), getattr(new, section)) for section in ("masks", "crf")]
    return " ".join(
        f"--{section}.{field.name.replace('_', '-')} {_plain(getattr(after, field.name))}"
        for section, before, after in pairs
        for field in dataclasses.fields(after)
        if getattr(before, field.name) != getattr(after, field.name)
    )


def _judge(
    settings: Settings, samples: Sequence[Sample], counts: Mapping[Settings, np.ndarray], chosen: Sequence[Settings]
) -> Calibration:
    """Compare the present settings with those chosen without each image in turn and, last in `chosen`, with all."""
    *folds, best = chosen
    left_out = np.stack([counts[one][image] for image, one in enumerate(folds)])
    gain = measure_gain(left_out, np.stack(list(counts.values())), settings.seed)
    candidates = tuple(
        Candidate(
            f"{_rule_words(one.mask_rule())}, {_crf_words(one.crf)}",
            flags(settings, one),
            float(pooled_miou(count.sum(0))),
            folds.count(one),
        )
        for one, count in counts.items()
    )
    images = tuple(sample.id for sample in samples)
    found = Calibration(images, candidates, list(counts).index(best), gain, settings)
    return dataclasses.replace(found, recommended=best) if found.certain else found


def _rule_words(rule: MaskSettings) -> str:
    words = {"rest": "remainder", "otsu": "Otsu's cut"}
    words |= {"threshold": f"cut {rule.threshold:g}", "power": f"power {rule.power:g}"}
    return words[rule.background]


def _crf_words(crf: CrfSettings) -> str:
    return f"CRF {crf.bilateral_compat:g} at {crf.bilateral_srgb:g} levels" if crf.steps else "no CRF"


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
