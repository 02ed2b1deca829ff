"""What a handful of true masks says about mask settings: a choice, cross-validated, and how sure it is."""

import json
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float, Int, Num

from tagseg.run.folder import Run
from tagseg.settings.settings import Settings
from tagseg.system.files import write_atomically

CONFIDENCE = 0.95
"""Probability with which the interval of a gain is to hold the true one."""

RESAMPLES = 2_000
"""Bootstrap resamples of the images."""


@dataclass(frozen=True)
class Candidate:
    """Mask settings that were tried: in words, the flags that turn the run's settings into them, their pooled mIoU on
    all calibration images, and how many folds chose them."""

    name: str
    flags: str
    miou: float
    folds: int


@dataclass(frozen=True)
class Gain:
    """What the choice gains over the present settings, in pooled mIoU (0..1), on images that took no part in choosing.

    `present` and `chosen` are the two mIoU; `low` to `high` is the interval of their difference, of `CONFIDENCE`;
    `better` is the share of the bootstrap's resamples in which a choice made anew is better on the images that are not
    in the resample.
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
    """Candidates tried on `images` (their ids); the first is the run's present settings, `best` the index of the one
    chosen with all images. `recommended` are the run's settings as they should be: the present ones unless the gain is
    certain."""

    images: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    best: int
    gain: Gain
    recommended: Settings

    @property
    def certain(self) -> bool:
        """Whether other settings than the present ones are best, and the interval of the gain is above 0."""
        return self.best != 0 and self.gain.low > 0

    def advice(self) -> str:
        """Return in a sentence what to do."""
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
            "background included. Folds: how often the candidate was chosen with one image left out.",
            "",
            "| mask settings | flags | mIoU | folds |",
            "|---|---|---:|---:|",
        ]
        for candidate in sorted(self.candidates, key=lambda candidate: -candidate.miou):
            flags = f"`{candidate.flags}`" if candidate.flags else "(present)"
            lines.append(f"| {candidate.name} | {flags} | {100 * candidate.miou:.1f} | {candidate.folds} |")
        gain = self.gain
        lines += [
            "",
            "The best of many flatters itself on the images it was chosen with. On images left out of choosing: "
            f"{100 * gain.chosen:.1f}, with the present settings {100 * gain.present:.1f}; gain {gain.text()} with "
            f"{CONFIDENCE:.0%} confidence. Chosen anew in {RESAMPLES:,} resamples of the images, it was better on "
            f"those not in the resample {gain.better:.0%} of the time.",
            "",
            self.advice(),
        ]
        return "\n".join(lines) + "\n"

    def save(self, run: Run) -> None:
        """Write calibration.json and calibration.md into the run, and note the images, which are never scored again."""
        used = sorted(calibration_images(run) | set(self.images))
        run.store(msgspec.structs.replace(run.manifest(), calibration_images=tuple(used)))
        write_atomically(run.calibration_file, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        write_atomically(run.calibration_file.with_suffix(".md"), f"# Calibration of the masks\n\n{self.table()}")
        run.note("calibration")

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, mIoU in per cent with two decimals."""
        rows = [
            {"name": one.name, "flags": one.flags, "miou": round(100 * one.miou, 2), "folds": one.folds}
            for one in self.candidates
        ]
        values = {"present": self.gain.present, "chosen": self.gain.chosen, "gain": self.gain.points}
        values |= {"gain_low": self.gain.low, "gain_high": self.gain.high}
        return {
            "images": list(self.images),
            "candidates": rows,
            "best": self.best,
            **{f"{name}_left_out": round(100 * value, 2) for name, value in values.items()},
            "confidence": CONFIDENCE,
            "better_share": round(self.gain.better, 4),
            "recommended": self.candidates[self.best].flags if self.certain else "",
            "advice": self.advice(),
        }


def calibration_images(run: Run) -> frozenset[str]:
    """Return the ids of all images whose true masks a calibration of this run has seen.

    They stand in the manifest, where they outlast the figures: settings chosen with them may still be in force.
    """
    return frozenset(run.manifest().calibration_images)


def pooled_miou(counts: Num[np.ndarray, "*sets 2 ids"]) -> Float[np.ndarray, "*sets"]:
    """Return the mean IoU of sets of images from pixels in intersection (0) and union (1) by class id, summed over each
    set; ids that are nowhere in a set do not count, and a set without any has 0."""
    hit, union = counts[..., 0, :], counts[..., 1, :]
    shares = np.divide(hit, union, out=np.zeros(union.shape), where=union > 0)
    return np.asarray(shares.sum(-1) / np.maximum((union > 0).sum(-1), 1))


def choices(counts: Int[np.ndarray, "candidates images 2 ids"]) -> list[int]:
    """Return which candidate is best without image 0, without image 1, ..., and last with all images; of equals the
    first."""
    total = counts.sum(1, keepdims=True)
    return [int(best) for best in pooled_miou(np.concatenate([total - counts, total], axis=1)).argmax(0)]


def measure_gain(
    left_out: Int[np.ndarray, "images 2 ids"], counts: Int[np.ndarray, "candidates images 2 ids"], seed: int
) -> Gain:
    """Return what a choice gains, from counts as `pooled_miou` takes them: `left_out` each image with the candidate
    that was chosen without it, `counts` with all candidates, the first of which is the present one.

    The interval reaches so far that the gains of *all* candidates are within theirs at once in `CONFIDENCE` of the
    bootstrap's resamples of the images (White 2000, A reality check for data snooping; studentised as in Romano and
    Wolf 2005): of many candidates that are no better one looks better by chance, left-out images or not. It is
    wider by `widening` where images are few.
    """
    images = len(left_out)
    # As floats: only those are multiplied by BLAS.
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
    anew = np.take_along_axis(outside, inside.argmax(0)[None], 0)[0]
    better = float((anew > outside[0])[absent.any(1)].mean())
    return Gain(present, chosen, chosen - present - reach, chosen - present + reach, better)


def widening(images: int) -> float:
    """Return how much wider than the bootstrap's an interval must be for the mean over few images to be as wide as
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
    """Pooled mIoU of every candidate on every resample, in which an image counts as often as its weight says."""
    return np.stack([pooled_miou(np.tensordot(weights, one, 1)) for one in counts])


def _points(share: float) -> str:
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(100 * share, 1) + 0.0:+.1f}"
