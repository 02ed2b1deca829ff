"""Measure pseudo-masks of small data sets (--quality fast), and what photographs without tags teach.

    python -m benchmarks.quality.small_data                      both data sets, seeds 0 to 2; run again to continue
    python -m benchmarks.quality.small_data --finished           only what is finished, no more work

Of each data set 50, 100, 200 and 500 photographs are drawn at random (all where there are fewer), and tag head, bank
and prototypes see nothing else. Scored are the masks of those of them that the benchmark `domains` scores, and whose
settings were chosen elsewhere; a seed draws the photographs too. Features come from the cache of `domains`, so that
principal components were computed on all photographs of the data set; they know no tags.

Photographs without tags: the class sheep is taken out of voc_animals. Its photographs that show nothing else have no
tag then. The masks of the five other classes are made once with these photographs and once without them.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.harness import RUNS, record
from benchmarks.quality import domains

from tagseg.data.prepare import Prepared
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.evaluate import scored_samples
from tagseg.features.cache import FeatureCache
from tagseg.rca.heads import fit_heads
from tagseg.run.folder import Run

SIZES = (50, 100, 200, 500)
LEFT_OUT = "sheep"


def main() -> None:
    """Fit and score every size and seed, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=domains.SETS, default=list(domains.SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone", default="mobilenetv2_100", help="timm's name")
    parser.add_argument("--out", type=Path, default=RUNS / "domains", help="folder for the runs, that of domains")
    parser.add_argument("--finished", action="store_true", help="measure nothing, leave out what is missing")
    options = parser.parse_args()
    options.photographs = 0  # `domains` makes the features of all
    figures: dict[str, Any] = {}
    rows = [
        "| data set | photographs | scored | CAM, Otsu | memory bank | with dense CRF | lowest class | CPU s, heads |"
    ]
    rows.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in options.sets:
        run, prepared, cache, _ = domains.features(options, name)
        figures[name] = {}
        for size in SIZES:
            arms = [_small(options, run, prepared, cache, name, size, seed) for seed in options.seeds]
            if found := [arm for arm in arms if arm]:
                figures[name][str(size)] = one = _summary(found)
                rows.append(_row(name, size, one))
        if name == "voc_animals":
            for arm in ("without_untagged", "with_untagged"):
                arms = [_untagged(options, run, prepared, cache, arm, seed) for seed in options.seeds]
                if found := [arm for arm in arms if arm]:
                    figures[name][arm] = one = _summary(found)
                    rows.append(_row(f"{name} minus {LEFT_OUT}, {arm.replace('_', ' ')}", one["photographs"], one))
    text = "\n".join(rows)
    print(text)
    print(record("small_data", options.seeds, figures, text))


def _scored(prepared: Prepared, name: str) -> set[str]:
    scored = scored_samples(prepared.dataset, "train")
    return {sample.id for sample in (scored[1::2] if name == "street_clothing" else scored)}


def _small(
    options: argparse.Namespace, run: Run, prepared: Prepared, cache: FeatureCache, name: str, size: int, seed: int
) -> dict[str, Any] | None:
    """Return the figures of photographs drawn by a seed, scored ones first."""
    scored, everything = _scored(prepared, name), prepared.dataset.split("train")
    order = np.random.default_rng(seed).permutation(len(everything))
    drawn = [everything[i] for i in order]
    ours = [sample for sample in drawn if sample.id in scored]
    others = [sample for sample in drawn if sample.id not in scored]
    some = ours[:size]
    chosen = [*some, *others[: size - len(some)]]
    return _measured(options, run, prepared, cache, chosen, some, f"small_{size}_{seed}.json", seed)


def _untagged(
    options: argparse.Namespace, run: Run, prepared: Prepared, cache: FeatureCache, arm: str, seed: int
) -> dict[str, Any] | None:
    dataset, scored = prepared.dataset, _scored(prepared, "voc_animals")
    gone = 1 + dataset.classes.index(LEFT_OUT)
    classes = tuple(name for name in dataset.classes if name != LEFT_OUT)
    samples = []
    for sample in dataset.split("train"):
        tags = tuple(tag - (tag > gone) for tag in sample.tags if tag != gone)
        if tags or arm == "with_untagged":
            samples.append(dataclasses.replace(sample, tags=tags))
    fewer = dataclasses.replace(prepared, dataset=dataclasses.replace(dataset, classes=classes, samples=tuple(samples)))
    # Masks have ids of six classes: those that show a sheep are not scored.
    kept = {sample.id for sample in dataset.samples if gone not in sample.tags}
    some = [sample for sample in samples if sample.id in scored & kept]
    return _measured(options, run, fewer, cache, samples, some, f"{arm}_{seed}.json", seed, gone)


def _measured(
    options: argparse.Namespace,
    run: Run,
    prepared: Prepared,
    cache: FeatureCache,
    chosen: Sequence[Sample],
    scored: Sequence[Sample],
    file: str,
    seed: int,
    gone: int = 0,
) -> dict[str, Any] | None:
    kept = run.root / file
    if not kept.exists():
        if options.finished:
            return None
        few = dataclasses.replace(prepared, dataset=dataclasses.replace(prepared.dataset, samples=tuple(chosen)))
        settings = dataclasses.replace(run.settings(), seed=seed)
        before = time.process_time()
        network = fit_heads(few.dataset, cache, settings).network
        found: dict[str, Any] = {"heads_cpu_s": round(time.process_time() - before, 1)}
        found |= domains.score(network, few, cache, list(scored), settings, _true_mask(prepared.dataset, gone))
        found |= {"scored": len(scored), "photographs": len(chosen)}
        kept.write_text(json.dumps(found))
    figures: dict[str, Any] = json.loads(kept.read_text())
    return figures


def _true_mask(dataset: Dataset, gone: int) -> Callable[[Sample], np.ndarray]:
    """Return a function that loads a true mask in which a class has been taken out (0: none has)."""
    values = np.arange(256, dtype=np.uint8)
    if gone:
        values[gone] = VOID
        values[gone + 1 : len(dataset.classes) + 1] -= 1
    return lambda sample: values[load_mask(sample, dataset)]


def _summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"seeds": len(found), "scored": found[0]["scored"]}
    figures["photographs"] = found[0]["photographs"]
    for kind in domains.KINDS:
        each = np.array([one[kind] for one in found], float)  # not a number: the class is in no scored image
        means = np.nanmean(each, 1)
        figures[kind] = round(float(means.mean()), 1)
        figures[f"{kind}_std"] = round(float(means.std(ddof=1)), 1) if len(means) > 1 else None
    figures["lowest_class"] = round(float(np.nanmin(np.nanmean(np.array([one["crf"] for one in found], float), 0))), 1)
    figures["heads_cpu_s"] = round(float(np.mean([one["heads_cpu_s"] for one in found])), 1)
    return figures


def _row(name: str, size: int, one: dict[str, Any]) -> str:
    values = [f"{one[kind]} ± {one[f'{kind}_std']}" for kind in domains.KINDS]
    cells = [name, one["photographs"], one["scored"], *values, one["lowest_class"], one["heads_cpu_s"]]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    main()
