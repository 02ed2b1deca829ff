"""Measure pseudo-masks from frozen features (--quality fast) on two data sets: class activation maps, the memory bank's
posterior, and the posterior after the dense CRF.

    python -m benchmarks.quality.domains                         both data sets, seeds 0 to 2; run again to continue
    python -m benchmarks.quality.domains --sets street_clothing --seeds 0
    python -m benchmarks.quality.domains --finished              only the seeds that are finished, no more work

Settings were chosen on images that are not scored: of voc_animals on training images outside train.txt, of
street_clothing on every second image, from the first; the others are scored. All images lend their tags. A seed draws
which images hold out tags, the order of the bank's regions, and k-means; features are the same for every seed.
"""

import argparse
import dataclasses
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import harness
from benchmarks.harness import RUNS, SHARED, record
from PIL import Image

from tagseg.data.images import read_image
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import Sample
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.evaluate import scored_samples
from tagseg.evaluate.iou import confusion, iou
from tagseg.features.cache import FeatureCache
from tagseg.features.extract import make_features
from tagseg.masks.localise import from_cache
from tagseg.masks.make import mask_image
from tagseg.rca.heads import fit_heads
from tagseg.rca.network import RcaNetwork
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.presets import preset_values
from tagseg.settings.settings import Settings
from tagseg.system.progress import bars

SETS = ("voc_animals", "street_clothing")
KINDS = ("cam", "rca", "crf")


def main() -> None:
    """Fit and score every data set and seed, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone", default="mobilenetv2_100", help="timm's name")
    parser.add_argument("--out", type=Path, default=RUNS / "domains", help="folder for the runs")
    parser.add_argument("--photographs", type=int, default=0, help="see no more than these, scored ones first (0: all)")
    parser.add_argument("--finished", action="store_true", help="measure nothing, leave out seeds that are missing")
    options = parser.parse_args()
    figures, tables = {}, []
    for name in options.sets:
        run, prepared, cache, seconds = features(options, name)
        scored = scored_samples(prepared.dataset, "train")
        scored = scored[1::2] if name == "street_clothing" else scored
        chosen = [seed for seed in options.seeds if not options.finished or _seed_file(run, seed).exists()]
        seeds = {seed: measure(run, prepared, cache, scored, seed) for seed in chosen}
        classes = ("background", *prepared.dataset.classes)
        figures[name] = summary(seeds, classes) | {"features_cpu_s": seconds, "scored": len(scored)}
        figures[name] |= {"seeds": chosen, "photographs": len(prepared.dataset.split("train"))}
        tables.append(f"**{name}**, seeds {', '.join(map(str, chosen))}\n\n" + table(figures[name], classes))
    print("\n\n".join(tables))
    print(record(harness.name("domains", options.backbone), options.seeds, figures, "\n\n".join(tables)))


def features(
    options: argparse.Namespace, name: str, data: Path | None = None
) -> tuple[Run, Prepared, FeatureCache, float]:
    """Return a run with its data set (in `data`, or one of `SETS`) and features, and the CPU seconds that the features
    took."""
    settings = Settings.from_dict(preset_values("fast"))
    weights = str(SHARED / f"weights/{options.backbone}.safetensors")
    train = dataclasses.replace(settings.train, backbone=options.backbone, weights=weights)
    root = options.out / f"{name}_{options.backbone}{f'_{options.photographs}' if options.photographs else ''}"
    run = open_run(root, data or SHARED / "data" / name, dataclasses.replace(settings, train=train), force=True)
    prepared, noted = prepare(run, bars), root / "features_cpu_s.json"
    if options.photographs:
        prepared = _some(prepared, options.photographs)
    before = time.process_time()
    made = (run.features / "index.json").exists() and noted.exists()
    cache = make_features(prepared, run, bars)
    if not made:
        noted.write_text(json.dumps(round(time.process_time() - before, 1)))
    seconds: float = json.loads(noted.read_text())
    return run, prepared, cache, seconds


def _some(prepared: Prepared, count: int) -> Prepared:
    """Return the data set with `count` training images: those that are scored, and the first others."""
    scored = {sample.id for sample in scored_samples(prepared.dataset, "train")}
    order = sorted(prepared.dataset.split("train"), key=lambda sample: sample.id not in scored)
    kept = {sample.id for sample in order[:count]}
    samples = tuple(sample for sample in prepared.dataset.samples if sample.id in kept)
    return dataclasses.replace(prepared, dataset=dataclasses.replace(prepared.dataset, samples=samples))


def measure(run: Run, prepared: Prepared, cache: FeatureCache, scored: list[Sample], seed: int) -> dict[str, Any]:
    """Return IoU per kind of mask, and CPU seconds, of one seed; a finished seed is kept."""
    file = _seed_file(run, seed)
    if not file.exists():
        settings, before = dataclasses.replace(run.settings(), seed=seed), time.process_time()
        network = fit_heads(prepared.dataset, cache, settings, bars).network
        found: dict[str, Any] = {"heads_cpu_s": round(time.process_time() - before, 1)}
        found |= score(network, prepared, cache, scored, settings)
        found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        file.write_text(json.dumps(found))
    kept: dict[str, Any] = json.loads(file.read_text())
    return kept


def score(
    network: RcaNetwork,
    prepared: Prepared,
    cache: FeatureCache,
    scored: list[Sample],
    settings: Settings,
    true_mask: Callable[[Sample], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Return the IoU of every class per kind of mask, and the CPU seconds of an image's maps and mask; `true_mask`:
    where the masks of the data set are not those to compare with."""
    ids = 1 + len(prepared.dataset.classes)
    pixels = {kind: np.zeros((ids, ids), np.int64) for kind in KINDS}
    localise = dataclasses.replace(settings.localise, kind="coarse")
    otsu = dataclasses.replace(settings, localise=localise)
    seconds = 0.0
    for sample in bars(scored, "scored masks", len(scored)):
        truth = true_mask(sample) if true_mask else load_mask(sample, prepared.dataset)
        cam = _bytes(from_cache(network, cache, sample, otsu).numpy())
        before = time.process_time()
        maps = _bytes(from_cache(network, cache, sample, settings).numpy())
        size = (truth.shape[1], truth.shape[0])
        image = np.asarray(read_image(sample.image).resize(size, Image.Resampling.BILINEAR))
        rule = settings.mask_rule()
        refined = mask_image(image, maps, sample.tags, truth.shape, rule, settings.crf)[0]
        seconds += time.process_time() - before
        made = {
            "cam": mask_image(None, cam, sample.tags, truth.shape, otsu.mask_rule())[0],
            "rca": mask_image(None, maps, sample.tags, truth.shape, rule)[0],
            "crf": refined,
        }
        for kind, mask in made.items():
            pixels[kind] += confusion(truth, mask, ids)
    found: dict[str, Any] = {"mask_cpu_s_per_image": round(seconds / len(scored), 3)}
    return found | {
        kind: [None if one is None else round(100 * one, 1) for one in iou(matrix).iou]
        for kind, matrix in pixels.items()
    }


def summary(seeds: dict[int, dict[str, Any]], classes: tuple[str, ...]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of the mIoU of each kind, the mean IoU of each class, and costs."""
    figures: dict[str, Any] = {}
    for kind in KINDS:
        each = np.array([found[kind] for found in seeds.values()])
        means = each.mean(1)
        figures[kind] = round(float(means.mean()), 1)
        figures[f"{kind}_std"] = round(float(means.std(ddof=1)), 1) if len(means) > 1 else None
        figures[f"{kind}_classes"] = dict(zip(classes, each.mean(0).round(1).tolist(), strict=True))
    for cost in ("heads_cpu_s", "mask_cpu_s_per_image", "peak_mb"):
        figures[cost] = round(float(np.mean([found[cost] for found in seeds.values()])), 3)
    return figures


def table(figures: dict[str, Any], classes: tuple[str, ...]) -> str:
    """Return the figures of a data set as Markdown."""
    rows = ["| IoU, % | CAM, Otsu | memory bank | with dense CRF |", "|---|---:|---:|---:|"]
    stds = {kind: figures[f"{kind}_std"] for kind in KINDS}
    spread = [f"**{figures[kind]}**" + (f" ± {stds[kind]}" if stds[kind] is not None else "") for kind in KINDS]
    rows.append("| **mean** | " + " | ".join(spread) + " |")
    for name in classes:
        rows.append(f"| {name} | " + " | ".join(str(figures[f"{kind}_classes"][name]) for kind in KINDS) + " |")
    costs = (
        f"{figures['photographs']} photographs, {figures['scored']} of them scored. "
        f"CPU seconds: features {figures['features_cpu_s']:.0f} for all images, "
        f"heads and bank {figures['heads_cpu_s']:.0f}, maps and mask {figures['mask_cpu_s_per_image']:.2f} an image; "
        f"peak memory {figures['peak_mb']:.0f} MB, pages of the mapped cache included."
    )
    return "\n".join(rows) + "\n\n" + costs


def _seed_file(run: Run, seed: int) -> Path:
    return run.root / f"seed_{seed}.json"


def _bytes(maps: np.ndarray) -> np.ndarray:
    """Return maps as they are stored, 0..255."""
    stored: np.ndarray = (maps * 255).round().astype(np.uint8)
    return stored


if __name__ == "__main__":
    main()
