"""Measure how well `tagseg judge` tells good masks from bad ones, from tags alone.

    python -m benchmarks.quality.judge        judges by the finished runs of `networks`; run again to continue

Judged are the run's own masks after the dense CRF, and true masks of which every second is spoiled on purpose: moved by
a sixth of the image, dilated by a twentieth of its long side, with the classes swapped (a class for another one of the
data set where there is only one), or with the middle of every object cut out. Scored are images whose masks nothing was
chosen on: train.txt of voc_animals, and of street_clothing every fourth image, from the second (from the fourth are for
validation).

`spearman`: rank correlation of score and true IoU over the classes of images. `in_worst_quarter`: share of the masks
below 0.5 true IoU, over all classes of the image, that are in the quarter with the lowest scores. `calibration_error`:
mean distance of score and true IoU in ten bins of the score, weighted by their size. `recall`: share of the spoiled
masks in the worse half.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.harness import RUNS, record
from scipy import ndimage
from scipy.stats import spearmanr

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import VOID, Sample
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.evaluate import scored_samples
from tagseg.masks.mask_files import mask_file, write_classes, write_mask
from tagseg.review.foreign import judge_masks
from tagseg.run.folder import Run
from tagseg.system.progress import bars

KINDS = ("moved", "dilated", "swapped", "hollow")


def main() -> None:
    """Judge both kinds of masks of every finished run, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RUNS / "networks", help="the folder of the runs of `networks`")
    parser.add_argument("--quality", default="fast")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in ("voc_animals", "street_clothing"):
        found = {}
        for file in sorted(options.out.glob(f"{name}_{options.quality}_*.json")):
            seed = int(file.stem.rsplit("_", 1)[1])
            kept = options.out / f"judge_{file.stem}.txt"
            if not kept.exists():
                kept.write_text(json.dumps(measure(Run(file.with_suffix("")), name, seed)))
            found[seed] = json.loads(kept.read_text())
        if found:
            figures[name] = summary(found)
    seeds = sorted({seed for one in figures.values() for seed in one["seeds"]})
    text = table(figures)
    print(text)
    print(record("judge", seeds, figures, text))


def measure(run: Run, name: str, seed: int) -> dict[str, float]:
    """Return the figures of a run."""
    prepared = prepare(run)
    samples = scored_samples(prepared.dataset, "train")
    samples = samples[1::3] if name == "street_clothing" else samples  # of the three fourths that are for training
    truths = {sample.id: load_mask(sample, prepared.dataset) for sample in samples}
    own = _folder(run, prepared, "judged_own")
    for sample in samples:
        shutil.copyfile(mask_file(run.decided_masks, sample.id), mask_file(own, sample.id))
    judged = judge_masks(run.root, own, bars)
    scores, ious, whole, wholes = [], [], [], []
    for sample in samples:
        mask, truth = read_mask_file(mask_file(own, sample.id)), truths[sample.id]
        pairs = [_iou(mask == tag, truth == tag, truth != VOID) for tag in sample.tags]
        scores += [judged.found[sample.id].classes[tag].score for tag in sample.tags]
        ious += pairs
        whole.append(judged.found[sample.id].score)
        inside = np.isin(truth, sample.tags) | np.isin(mask, sample.tags)
        wholes.append(_iou(mask, truth, inside & (truth != VOID), equal=True))
    quarter = np.argsort(whole)[: len(whole) // 4]
    bad = np.flatnonzero(np.array(wholes) < 0.5)
    figures = {
        "spearman": float(spearmanr(scores, ious).statistic),
        "in_worst_quarter": float(np.isin(bad, quarter).mean()) if len(bad) else 1.0,
        "bad": len(bad) / len(wholes),
        "calibration_error": _calibration(np.array(scores), np.array(ious)),
    }
    spoiled = _folder(run, prepared, "judged_spoiled")
    rng, kind_of = np.random.default_rng(seed), {}
    for number, sample in enumerate(samples):
        mask = truths[sample.id]
        if number % 2:
            kind_of[sample.id] = KINDS[number // 2 % len(KINDS)]
            mask = spoil(mask, sample, kind_of[sample.id], len(prepared.dataset.classes), rng)
        write_mask(mask_file(spoiled, sample.id), mask)
    order = [one.id for one in judge_masks(run.root, spoiled, bars).worst]
    worse = set(order[: len(kind_of)])
    figures["recall"] = float(np.mean([one in worse for one in kind_of]))
    for kind in KINDS:
        figures[f"recall_{kind}"] = float(np.mean([one in worse for one, k in kind_of.items() if k == kind]))
    return {key: round(value, 3) for key, value in figures.items()}


def spoil(mask: np.ndarray, sample: Sample, kind: str, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return a mask spoiled in one way; void stays where it is, but for moved masks."""
    side = max(mask.shape)
    if kind == "moved":
        y, x = (int(step) for step in rng.choice((-1, 1), 2) * round(side / 6))
        return np.asarray(ndimage.shift(mask, (y, x), order=0, cval=0))
    changed = mask.copy()
    for tag in sample.tags:
        own = mask == tag
        if kind == "dilated":
            changed[ndimage.binary_dilation(own, iterations=max(side // 20, 1)) & (mask == 0)] = tag
        elif kind == "hollow":
            depth = ndimage.distance_transform_edt(own)
            changed[own & (depth > 0.3 * depth.max(initial=1))] = 0
    if kind == "swapped":
        others = [one for one in range(1, classes + 1) if one not in sample.tags]
        turned = (*sample.tags[1:], sample.tags[0]) if len(sample.tags) > 1 else (rng.choice(others),)
        for tag, other in zip(sample.tags, turned, strict=True):
            changed[mask == tag] = other
    return changed


def _folder(run: Run, prepared: Prepared, name: str) -> Path:
    folder = run.root.parent / f"{name}_{run.root.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_classes(folder, prepared.dataset.classes)
    return folder


def _iou(mask: np.ndarray, truth: np.ndarray, counted: np.ndarray, equal: bool = False) -> float:
    """Return the IoU of two masks of one class; with `equal`, the share of the counted pixels with equal labels."""
    if equal:
        return float((mask == truth)[counted].mean()) if counted.any() else 1.0
    union = ((mask | truth) & counted).sum()
    return float((mask & truth & counted).sum() / union) if union else 1.0


def _calibration(scores: np.ndarray, ious: np.ndarray) -> float:
    bins = np.minimum((10 * scores).astype(int), 9)
    return float(
        sum(
            abs(scores[bins == one].mean() - ious[bins == one].mean()) * (bins == one).mean() for one in np.unique(bins)
        )
    )


def summary(found: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds."""
    figures: dict[str, Any] = {"seeds": list(found)}
    for key in next(iter(found.values())):
        values = [one[key] for one in found.values()]
        figures[key] = round(float(np.mean(values)), 3)
        figures[f"{key}_std"] = round(float(np.std(values, ddof=1)), 3) if len(values) > 1 else None
    return figures


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    names = {
        "spearman": "rank correlation (Spearman) of score and true IoU, classes of images",
        "bad": "share of masks below 0.5 true IoU",
        "in_worst_quarter": "... of which in the worst quarter",
        "calibration_error": "calibration error",
        "recall": "spoiled masks found in the worse half",
        **{f"recall_{kind}": f"... {kind}" for kind in KINDS},
    }
    heads = [f"{name} (seeds {', '.join(map(str, one['seeds']))})" for name, one in figures.items()]
    rows = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(figures)]
    for key, label in names.items():
        cells = []
        for one in figures.values():
            spread = one[f"{key}_std"]
            cells.append(f"{one[key]:.2f}" + (f" ± {spread:.2f}" if spread is not None else ""))
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
