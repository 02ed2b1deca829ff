"""Estimate what a choice of mask settings gains, from a small number of true masks, by cross-validation."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float, Int, Num

from tagseg.run.draft import RunDraft
from tagseg.run.folder import Run
from tagseg.run.stages import OTHERS
from tagseg.settings.settings import Settings
from tagseg.system.records import Count, Number, Record, Share, read_record, record_values

CONFIDENCE = 0.95
"""Probability that the interval of a gain contains the true gain."""

RESAMPLES = 2_000
"""Number of bootstrap resamples of the images."""


class TriedSettings(msgspec.Struct, frozen=True):
    """Mask settings that were tried: see `Candidate`; miou in per cent."""

    name: str
    flags: str
    miou: Number
    folds: Count


class CalibrationFile(Record, frozen=True):
    """calibration.json: see `Calibration` and `Gain`; mIoU in per cent, on images left out of the choice."""

    images: tuple[str, ...]
    candidates: tuple[TriedSettings, ...]
    best: Count
    present_left_out: Number
    chosen_left_out: Number
    gain_left_out: Number
    gain_low_left_out: Number
    gain_high_left_out: Number
    confidence: Share
    better_share: Share
    recommended: str
    advice: str


@dataclass(frozen=True)
class Candidate:
    """Mask settings that were tried: their name, the flags that change the run's settings into them, their pooled mIoU
    on all calibration images, and the number of folds that chose them."""

    name: str
    flags: str
    miou: float
    folds: int


@dataclass(frozen=True)
class Gain:
    """The gain of the choice over the present settings in pooled mIoU (0..1), on images not used for the choice.

    present, chosen: the mIoU of the present and of the chosen settings. low, high: the interval of their difference,
    with confidence `CONFIDENCE`. better: the share of bootstrap resamples in which a choice made with the resample is
    better on the images outside it.
    """

    present: float
    chosen: float
    low: float
    high: float
    better: float

    @property
    def points(self) -> float:
        return self.chosen - self.present

    def text(self) -> str:
        """Return the gain and its interval in points of mIoU."""
        gain, low, high = (_points(value) for value in (self.points, self.low, self.high))
        return f"{gain} ({low} to {high})"


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    images: ids of the calibration images. candidates: the mask settings tried, the run's present settings first. best:
    index of the candidate chosen with all images. gain: of the choice. recommended: the settings that the run should
    have, which are the present ones unless the gain is certain.
    """

    images: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    best: int
    gain: Gain
    recommended: Settings

    @property
    def certain(self) -> bool:
        """Whether the best settings are not the present ones, and the interval of the gain is above 0."""
        return self.best != 0 and self.gain.low > 0

    def advice(self) -> str:
        """Return one sentence of advice."""
        best = self.candidates[self.best]
        if self.best == 0:
            return f"Keep the present settings: none of {len(self.candidates)} candidates is better on these images."
        if not self.certain:
            return f"Keep the present settings: the gain of {best.flags}, {self.gain.text()}, is not certain."
        return f"Change the settings: {best.flags} gains {self.gain.text()}."

    def table(self) -> str:
        """Return candidates, cross-validation and advice as Markdown, mIoU in per cent."""
        lines = [
            f"Masks of {len(self.images)} training images against their true masks: pooled mIoU in per cent, "
            "including background. Folds: how often the candidate was chosen with one image left out.",
            "",
            "| mask settings | flags | mIoU | folds |",
            "|---|---|---:|---:|",
        ]
        for candidate in sorted(self.candidates, key=lambda candidate: -candidate.miou):
            flags = f"`{candidate.flags}`" if candidate.flags else "(present)"
            lines.append(f"| {candidate.name} | {flags} | {_per_cent(candidate.miou):.1f} | {candidate.folds} |")
        gain = self.gain
        lines += [
            "",
            "The best of many candidates looks too good on the images it was chosen with. On images left out of the "
            f"choice, the chosen settings score {_per_cent(gain.chosen):.1f} and the present settings "
            f"{_per_cent(gain.present):.1f}: a gain of {gain.text()} with {CONFIDENCE:.0%} confidence. When the choice "
            f"was repeated in {RESAMPLES:,} resamples of the images, it was better on the images outside the resample "
            f"{gain.better:.0%} of the time.",
            "",
            self.advice(),
        ]
        return "\n".join(lines) + "\n"

    def save(self, draft: RunDraft) -> None:
        """Write calibration.json and calibration.md to the run, and record the images, which are never scored again."""
        used = sorted({*draft.manifest.calibration_images, *self.images})
        draft.manifest = msgspec.structs.replace(draft.manifest, calibration_images=tuple(used))
        figures, table = OTHERS["calibration"]
        draft.write(figures, self.to_record())
        draft.write(table, f"# Calibration of the masks\n\n{self.table()}")
        draft.note("calibration")

    def to_record(self) -> CalibrationFile:
        """Return the result as it is written: mIoU in per cent, rounded to two decimals."""
        gain = self.gain
        return CalibrationFile(
            images=self.images,
            candidates=tuple(
                TriedSettings(one.name, one.flags, _per_cent(one.miou), one.folds) for one in self.candidates
            ),
            best=self.best,
            present_left_out=_per_cent(gain.present),
            chosen_left_out=_per_cent(gain.chosen),
            gain_left_out=_per_cent(gain.points),
            gain_low_left_out=_per_cent(gain.low),
            gain_high_left_out=_per_cent(gain.high),
            confidence=CONFIDENCE,
            better_share=round(gain.better, 4),
            recommended=self.candidates[self.best].flags if self.certain else "",
            advice=self.advice(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, with mIoU in per cent rounded to two decimals."""
        values = record_values(self.to_record())
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def read_calibration(run: Run) -> Calibration:
    """Return the last calibration of a run, rounded as it was written; `recommended` are the run's present settings.

    Raises:
        RunError: when calibration.json is missing or damaged.
    """
    found = read_record(run.calibration_file, CalibrationFile, "tagseg calibrate writes it again")
    candidates = tuple(Candidate(one.name, one.flags, one.miou / 100, one.folds) for one in found.candidates)
    present, chosen, low, high = (
        value / 100
        for value in (found.present_left_out, found.chosen_left_out, found.gain_low_left_out, found.gain_high_left_out)
    )
    gain = Gain(present, chosen, low, high, found.better_share)
    return Calibration(found.images, candidates, found.best, gain, run.settings())


def _per_cent(share: float) -> float:
    return round(100 * share, 2)


def calibration_images(run: Run) -> frozenset[str]:
    """Return the ids of all images whose true masks were used to calibrate this run.

    They are kept in the manifest, even after calibration.json is discarded: settings chosen with them may still apply.
    """
    return frozenset(run.manifest().calibration_images)


def pooled_miou(counts: Num[np.ndarray, "*sets 2 ids"]) -> Float[np.ndarray, "*sets"]:
    """Return the mean IoU of sets of images, from the numbers of pixels in intersection (0) and union (1) by class id,
    summed over each set. Ids that do not occur in a set are left out of its mean; a set without any id has 0."""
    hit, union = counts[..., 0, :], counts[..., 1, :]
    shares = np.divide(hit, union, out=np.zeros(union.shape), where=union > 0)
    return np.asarray(shares.sum(-1) / np.maximum((union > 0).sum(-1), 1))


def choices(counts: Int[np.ndarray, "candidates images 2 ids"]) -> list[int]:
    """Return the index of the best candidate without image 0, without image 1, ..., and last with all images. The first
    of several equal candidates is the best."""
    total = counts.sum(1, keepdims=True)
    return [int(best) for best in pooled_miou(np.concatenate([total - counts, total], axis=1)).argmax(0)]


def measure_gain(
    left_out: Int[np.ndarray, "images 2 ids"], counts: Int[np.ndarray, "candidates images 2 ids"], seed: int
) -> Gain:
    """Return the gain of a choice, from counts as in `pooled_miou`: `left_out` of each image with the candidate chosen
    without it, `counts` with all candidates, the first of which are the present settings.

    The interval is simultaneous: in a share `CONFIDENCE` of the bootstrap resamples of the images, the gains of *all*
    candidates are within their intervals (White 2000, A reality check for data snooping; studentised as in Romano and
    Wolf 2005). This is necessary because among many equal candidates one looks better by chance, even on left-out
    images. With few images the interval is wider by `widening`.
    """
    images = len(left_out)
    # Floats, because BLAS multiplies only floats.
    weights = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), RESAMPLES).astype(float)
    absent = (weights == 0).astype(float)
    inside, outside = _resample(counts, weights), _resample(counts, absent)
    observed = pooled_miou(counts.sum(1))
    chances = (inside - inside[0]) - (observed - observed[0])[:, None]
    errors = chances.std(1)
    told = errors > 0
    furthest = (np.abs(chances[told]) / errors[told, None]).max(0, initial=0.0)
    error = float((_resample(left_out[None], weights)[0] - inside[0]).std())
    reach = float(np.quantile(furthest, CONFIDENCE)) * widening(images) * error
    present, chosen = float(observed[0]), float(pooled_miou(left_out.sum(0)))
    rechosen = np.take_along_axis(outside, inside.argmax(0)[None], 0)[0]
    better = float((rechosen > outside[0])[absent.any(1)].mean())
    return Gain(present, chosen, chosen - present - reach, chosen - present + reach, better)


def widening(images: int) -> float:
    """Return the factor by which to widen a bootstrap interval of the mean over few images so that it is as wide as
    Student's (Hesterberg 2015, What teachers should know about the bootstrap)."""
    free = images - 1
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    # Student's quantile from the normal one: Abramowitz and Stegun 26.7.5.
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return t / z * math.sqrt(images / free)


def _resample(
    counts: Int[np.ndarray, "candidates images 2 ids"], weights: Float[np.ndarray, "resamples images"]
) -> Float[np.ndarray, "candidates resamples"]:
    """Return the pooled mIoU of every candidate on every resample, where `weights` says how often each image counts."""
    return np.stack([pooled_miou(np.tensordot(weights, one, 1)) for one in counts])


def _points(share: float) -> str:
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(_per_cent(share), 1) + 0.0:+.1f}"
