"""Measure the segmentation networks that `tagseg fit` makes from frozen features, on photographs they never saw.

    python -m benchmarks.quality.networks                            both data sets, seeds 0 to 2, --quality balanced
    python -m benchmarks.quality.networks --qualities fast best --sets street_clothing --seeds 0
    python -m benchmarks.quality.networks --finished                 only what is finished, no more work

Each run is one `tagseg fit` with the defaults of its quality, in a process of its own; run again to continue. Of
voc_animals the networks are scored on val.txt, of street_clothing on every fourth photograph, which lends neither tags
nor pixels; settings were chosen on others (see the benchmark `domains`). Pseudo-masks are scored on train.txt of
voc_animals, and on all other photographs of street_clothing. The features of a data set are computed once and linked
into its other runs: CPU seconds are those of a run without them.
"""

import argparse
import csv
import dataclasses
import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.harness import RUNS, SHARED, record
from benchmarks.quality.segmenter import crf_miou

from tagseg.evaluate.scores import Scores, read_evaluation
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.presets import preset_values
from tagseg.settings.settings import Settings

SETS = ("voc_animals", "street_clothing")
MASKS = {"pseudo_masks": "masks", "self_trained": "after self-training", "segmenter": "network"}


def main() -> None:
    """Run what is asked for and not finished, and write the table of all that is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--qualities", nargs="+", choices=("fast", "balanced", "best"), default=["balanced"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone", default="mobilenetv2_100", help="timm's name")
    parser.add_argument("--out", type=Path, default=RUNS / "networks", help="folder for the runs")
    parser.add_argument("--finished", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.finished:
        for seed in options.seeds:
            for quality in options.qualities:
                for name in options.sets:
                    measure(options, name, quality, seed)
    figures: dict[str, Any] = {}
    for file in sorted(options.out.glob("*.json")):
        name, quality, seed = file.stem.rsplit("_", 2)
        figures.setdefault(name, {}).setdefault(quality, {})[seed] = json.loads(file.read_text())
    figures = {name: {quality: summary(seeds) for quality, seeds in one.items()} for name, one in figures.items()}
    seeds = sorted({int(seed) for one in figures.values() for found in one.values() for seed in found["seeds"]})
    text = table(figures)
    print(text)
    print(record("networks", seeds, figures, text))


def measure(options: argparse.Namespace, name: str, quality: str, seed: int) -> None:
    """Run `tagseg fit` if it is not finished, and note its figures."""
    file = options.out / f"{name}_{quality}_{seed}.json"
    if file.exists():
        return
    data, run = SHARED / "data" / name, Run(options.out / f"{name}_{quality}_{seed}")
    if name == "street_clothing":
        data = held_out_part(data, options.out / "data" / name)
    if not run.root.exists():  # a run as the command begins it, but for the features
        first = Run(options.out / "features" / name)
        if not first.root.exists() or not first.done("train"):
            tagseg_fit(options, data, first, "fast", 0, "--until", "train")
        started = preset_values(quality) | {"seed": seed}
        train = dataclasses.replace(
            Settings.from_dict(started).train, backbone=options.backbone, weights=weights(options)
        )
        open_run(run.root, data, dataclasses.replace(Settings.from_dict(started), train=train))
        shutil.copytree(first.features, run.features, copy_function=os.link)
    usage = tagseg_fit(options, data, run, quality, seed)
    scores = read_evaluation(run)
    found: dict[str, Any] = {"fit_cpu_s": round(usage.ru_utime + usage.ru_stime), "peak_mb": usage.ru_maxrss // 1024}
    for what in MASKS:
        one: Scores | None = getattr(scores, what)
        found[what] = None if one is None else round(100 * one.miou, 1)
    network = scores.segmenter
    assert network, "the data set has photographs for validation, with masks"
    found["segmenter_classes"] = {
        entry: None if value is None else round(100 * value, 1)
        for entry, value in zip(scores.classes, network.iou, strict=True)
    }
    found["segmenter_crf"] = round(crf_miou(run), 1)
    file.write_text(json.dumps(found))


def weights(options: argparse.Namespace) -> str:
    """Return the file with the backbone's ImageNet weights."""
    return str(SHARED / f"weights/{options.backbone}.safetensors")


def tagseg_fit(
    options: argparse.Namespace, data: Path, run: Run, quality: str, seed: int, *until: str
) -> resource.struct_rusage:
    """Run `tagseg fit` and return what it used."""
    command = [sys.executable, "-m", "tagseg", "fit", str(data), "--out", str(run.root), "--quality", quality]
    command += ["--train.backbone", options.backbone]
    command += ["--train.weights", weights(options), "--seed", str(seed), *until]
    child = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage


def held_out_part(whole: Path, part: Path) -> Path:
    """Return a copy of street_clothing whose every fourth photograph is for validation."""
    if part.exists():
        return part
    making = part.with_name(f"{part.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for folder in ("images", "masks"):
        shutil.copytree(whole / folder, making / folder)
    for file in ("classes.txt",):
        shutil.copyfile(whole / file, making / file)
    with (whole / "tags.csv").open(newline="") as source, (making / "tags.csv").open("w", newline="") as target:
        rows = list(csv.reader(source))
        writer = csv.writer(target)
        writer.writerow([*rows[0], "split"])
        order = {name: number for number, name in enumerate(sorted(row[0] for row in rows[1:]))}
        writer.writerows([*row, "val" if order[row[0]] % 4 == 3 else "train"] for row in rows[1:])
    making.rename(part)
    return part


def summary(seeds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of every figure, and the network's mean IoU per class."""
    found: dict[str, Any] = {"seeds": list(seeds)}
    for what in (*MASKS, "segmenter_crf", "fit_cpu_s", "peak_mb"):
        values = [one[what] for one in seeds.values() if one[what] is not None]
        found[what] = round(float(np.mean(values)), 1) if values else None
        found[f"{what}_std"] = round(float(np.std(values, ddof=1)), 1) if len(values) > 1 else None
    classes = next(iter(seeds.values()))["segmenter_classes"]
    found["segmenter_classes"] = {
        name: round(float(np.mean([one["segmenter_classes"][name] or 0 for one in seeds.values()])), 1)
        for name in classes
    }
    return found


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    columns = [*MASKS.values(), "network, dense CRF", "CPU s of fit, without features", "peak MB"]
    rows = ["| data set | quality | seeds | " + " | ".join(columns) + " |", "|---|---|---|" + "---:|" * len(columns)]
    for name, qualities in figures.items():
        for quality, one in qualities.items():
            cells = []
            for what in (*MASKS, "segmenter_crf", "fit_cpu_s", "peak_mb"):
                spread = one[f"{what}_std"]
                cells.append("-" if one[what] is None else f"{one[what]:g}" + (f" ± {spread:g}" if spread else ""))
            rows.append(f"| {name} | {quality} | {', '.join(one['seeds'])} | " + " | ".join(cells) + " |")
    rows += ["", "mIoU in percent. IoU of the networks per class:", ""]
    for name, qualities in figures.items():
        for quality, one in qualities.items():
            each = ", ".join(f"{entry} {value:g}" for entry, value in one["segmenter_classes"].items())
            rows.append(f"- {name}, {quality}: {each}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
