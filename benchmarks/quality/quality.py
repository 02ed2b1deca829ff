"""Measure how well masks and tags are judged without truth on voc_animals: score against true IoU, and corrupted tags.

    python -m benchmarks.quality.quality                 run again to continue
    python -m benchmarks.quality.quality --only scores   only the scores, of the run of voc_animals.py (run that first)
    python -m benchmarks.quality.quality --only tags     a separate run with 5 % of the tags corrupted: about an hour

The formula of the score was chosen on 300 training images that are not scored. Nothing is tuned on the scored masks or
the corrupted tags.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from benchmarks import harness
from benchmarks.harness import record
from benchmarks.quality.corrupt import Errors, corrupted
from scipy.stats import spearmanr

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import Sample
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.evaluate import scored_samples
from tagseg.evaluate.iou import confusion, iou
from tagseg.evaluate.quality import ImageQuality
from tagseg.evaluate.suspects import find_suspects
from tagseg.masks.mask_files import mask_file
from tagseg.pipeline import fit_until
from tagseg.review.assess import assess
from tagseg.run.folder import Run
from tagseg.studies.ablation.arms import run_folder
from tagseg.system.progress import bars

SHARE = 0.05
"""Share of the tags that are corrupted."""

BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Judged(NamedTuple):
    """A scored image: what was found about it without truth, and its pixels by true and predicted class."""

    quality: ImageQuality
    confusion: np.ndarray


def main() -> None:
    """Judge masks and tags, and write the results when both exist."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("scores", "tags"))
    options = harness.parse(parser, "voc_animals_fit")
    run = Run(run_folder(options.out, "both", options.seed))
    figures: dict[str, float] = {}
    lines: list[str] = []
    if options.only != "tags":
        if not run.manifest_file.exists() or not run.done("segment"):
            parser.error(f"needs the run {run.root}: python -m benchmarks.quality.voc_animals makes it")
        scores, table = judge_scores(run)
        figures |= scores
        lines += table
    if options.only != "scores":
        found, table = judge_tags(options)
        figures |= found
        lines += table
    print("\n".join(lines))
    if options.only is None:
        print(record("quality", [options.seed], figures, "\n".join(lines)))


def judge_scores(run: Run) -> tuple[dict[str, float], list[str]]:
    """Compare the scores of a run's masks with their true IoU on the scored images."""
    found, prepared = assess(run, bars), prepare(run)
    judged = [Judged(found[sample.id], pixels) for sample, pixels in _confusions(prepared, run)]
    pairs = np.array([pair for one in judged for pair in _pairs(one)])
    order = sorted(judged, key=lambda one: -one.quality.score)
    best, rest = order[: len(order) // 2], order[len(order) // 2 :]
    figures = {
        "spearman": round(float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic), 3),
        "miou_all": _miou(judged),
        "miou_best_half": _miou(best),
        "miou_other_half": _miou(rest),
        "classes_best_half": sum(share is not None for share in iou(_sum(best)).iou),
        "mean_score": round(float(pairs[:, 0].mean()), 3),
        "mean_iou": round(float(pairs[:, 1].mean()), 3),
    }
    lines = [
        f"{len(judged)} training images with true masks, {len(pairs)} classes in them: rank correlation (Spearman) of "
        f"the score with the true IoU **{figures['spearman']:.2f}**; mIoU of all masks **{figures['miou_all']:.1f}**, "
        f"of the half with the best scores **{figures['miou_best_half']:.1f}** ({figures['classes_best_half']} of "
        f"{len(judged[0].confusion)} classes are in it), of the others {figures['miou_other_half']:.1f}.",
        "",
        "| score | classes of images | mean score | mean true IoU |",
        "|---|---:|---:|---:|",
    ]
    for low, high in itertools.pairwise(BINS):
        inside = pairs[(pairs[:, 0] >= low) & ((pairs[:, 0] < high) | (high == 1))]
        if len(inside):
            score, true = inside.mean(0)
            lines.append(f"| {low:.1f} to {high:.1f} | {len(inside)} | {score:.2f} | {true:.2f} |")
    return figures, [*lines, ""]


def judge_tags(options: argparse.Namespace) -> tuple[dict[str, float], list[str]]:
    """Train on partly corrupted tags, and count how many of the errors are found."""
    home = harness.RUNS / harness.name("quality", options.backbone)
    data, kept = home / f"tags_{options.seed}", home / f"tags_{options.seed}" / "errors.json"
    if not kept.exists():
        corrupted(options.data, data, SHARE, options.seed)
    errors: Errors = [(name, tag, kind) for name, tag, kind in json.loads(kept.read_text(encoding="utf-8"))]
    settings = harness.animal_settings(options)
    settings = dataclasses.replace(settings, seed=options.seed, segment=dataclasses.replace(settings.segment, rounds=1))
    run = Run(home / f"both_{options.seed}")
    fit_until(data, run.root, "segment", settings, track=bars)
    dataset = prepare(run).dataset
    suspects = [
        (one.id, dataset.classes[one.class_id - 1], one.kind) for one in find_suspects(dataset, assess(run, bars))
    ]
    hits = set(suspects) & set(errors)
    figures = {
        "tag_errors": len(errors),
        "tag_errors_found": len(suspects),
        "tag_errors_recall": round(len(hits) / len(errors), 3),
        "tag_errors_precision": round(len(hits) / max(len(suspects), 1), 3),
    }
    first = suspects[: len(errors)]
    lines = [
        f"{100 * SHARE:.0f} % of the training tags corrupted ({len(errors)} errors: a swapped tag is one wrong and one "
        f"missing), classifier and segmentation network trained on them: {len(suspects)} tags suspected, "
        f"recall **{figures['tag_errors_recall']:.2f}**, precision **{figures['tag_errors_precision']:.2f}**.",
        "",
        "| | errors | suspected | of these errors | recall | precision |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind in ("wrong", "missing"):
        lines.append(_tag_row(kind, [e for e in errors if e[2] == kind], [s for s in suspects if s[2] == kind]))
    lines += [_tag_row("all", errors, suspects), _tag_row(f"the {len(first)} surest", errors, first)]
    return figures, lines


def _tag_row(name: str, errors: Sequence[tuple[str, str, str]], suspects: Sequence[tuple[str, str, str]]) -> str:
    hits = len(set(errors) & set(suspects))
    recall, precision = hits / max(len(errors), 1), hits / max(len(suspects), 1)
    return f"| {name} | {len(errors)} | {len(suspects)} | {hits} | {recall:.2f} | {precision:.2f} |"


def _confusions(prepared: Prepared, run: Run) -> list[tuple[Sample, np.ndarray]]:
    """Return the scored training images with their pixels by true and predicted class."""
    folder, dataset = run.final().decided_masks, prepared.dataset
    found = []
    for sample in scored_samples(dataset, "train"):
        truth = load_mask(sample, dataset, prepared.sizes[sample.id])
        given = read_mask_file(mask_file(folder, sample.id))
        found.append((sample, confusion(truth, given, len(dataset.classes) + 1)))
    return found


def _pairs(judged: Judged) -> list[tuple[float, float]]:
    """Return the score and the true IoU of every tagged class of an image."""
    shares = iou(judged.confusion).iou
    return [(one.score, shares[class_id] or 0.0) for class_id, one in judged.quality.classes.items()]


def _miou(judged: Sequence[Judged]) -> float:
    return round(100 * iou(_sum(judged)).miou, 2)


def _sum(judged: Sequence[Judged]) -> np.ndarray:
    return np.array(np.sum([one.confusion for one in judged], axis=0))


if __name__ == "__main__":
    main()
