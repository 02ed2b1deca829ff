"""Measure `fit` against version 0.1 on a part of voc_animals: CPU seconds to masks and to a network, memory, mIoU.

    git worktree add ../tagseg-0.1 4b5e772
    python -m benchmarks.speed.fit --old ../tagseg-0.1 --photographs 200

Both versions run in this environment as commands, one after the other, each with its own default settings and the same
backbone and weights. A finished command is kept, so the benchmark can be stopped and run again. The photographs are the
first of train.txt, whose masks are scored and used for nothing else. CPU seconds are those of the command and of all
its processes; peak memory is that of its largest process.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import RUNS, record

STEPS = {"masks": ("--until", "masks"), "network": ("--until", "segment"), "scores": ()}


def main() -> None:
    """Run every version and quality, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=Path, required=True, help="a checkout of 0.1")
    parser.add_argument("--photographs", type=int, default=200)
    parser.add_argument("--arms", nargs="+", default=["0.1", "fast", "balanced"], help="0.1, and qualities")
    options = harness.parse(parser, "speed")
    data = _part(options.data, RUNS / "speed" / f"data_{options.photographs}", options.photographs)
    found = {arm: _measure(options, data, arm) for arm in options.arms}
    figures: dict[str, Any] = {"photographs": options.photographs, "arms": found}
    if "0.1" in found:
        figures["fit_over_0_1"] = {
            arm: {
                "masks": round(found["0.1"]["masks_cpu_s"] / one["masks_cpu_s"], 2),
                "network": round(found["0.1"]["network_cpu_s"] / one["network_cpu_s"], 2),
            }
            for arm, one in found.items()
        }
        peak = found["0.1"]["peak_mb"]
        figures["peak_mb_ratio"] = {arm: round(one["peak_mb"] / peak, 2) for arm, one in found.items()}
    if "fast" in found:
        figures[f"masks_{options.photographs}_cpu_s"] = found["fast"]["masks_cpu_s"]
        figures[f"network_{options.photographs}_cpu_s"] = found["fast"]["network_cpu_s"]
    rows = [
        "| | CPU s to masks | wall s | CPU s to network | wall s | peak MB | masks, mIoU | network, mIoU (199 val) |"
    ]
    rows.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for arm, one in found.items():
        rows.append(
            f"| {arm} | {one['masks_cpu_s']} | {one['masks_wall_s']} | {one['network_cpu_s']} | "
            f"{one['network_wall_s']} | {one['peak_mb']} | {one['masks_miou']} | {one['network_miou']} |"
        )
    text = "\n".join(rows)
    print(text)
    print(record("speed", [0], figures, text))


def _part(whole: Path, part: Path, photographs: int) -> Path:
    """Return a VOC folder of `photographs` training images, and all validation images."""
    if part.exists():
        return part
    lists = whole / "ImageSets/Segmentation"
    chosen = (lists / "train.txt").read_text().split()[:photographs]
    kept = {*chosen, *(lists / "val.txt").read_text().split()}
    making = part.with_name(f"{part.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    for folder in ("JPEGImages", "SegmentationClass"):
        (making / folder).mkdir(parents=True)
        for file in (whole / folder).iterdir():
            if file.stem in kept:
                shutil.copyfile(file, making / folder / file.name)
    (making / "ImageSets/Segmentation").mkdir(parents=True)
    for name in ("train.txt", "train_aug.txt"):
        (making / "ImageSets/Segmentation" / name).write_text("\n".join(chosen) + "\n")
    shutil.copyfile(lists / "val.txt", making / "ImageSets/Segmentation/val.txt")
    header, *rows = (whole / "tags.csv").read_text().splitlines()
    rows = [row for row in rows if Path(row.split(",")[0]).stem in kept]
    (making / "tags.csv").write_text("\n".join([header, *rows]) + "\n")
    making.rename(part)
    return part


def _measure(options: argparse.Namespace, data: Path, arm: str) -> dict[str, Any]:
    """Return the figures of a version or quality."""
    out = RUNS / "speed" / f"{arm}_{options.photographs}"
    kept = out.with_name(f"{out.name}.json")
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"peak_mb": 0}
    flags = ["--train.backbone", options.backbone, "--train.weights", str(options.weights)]
    environment = dict(os.environ)
    if arm == "0.1":
        environment["PYTHONPATH"] = str(options.old.resolve() / "src")
    else:
        flags += ["--quality", arm]
    cpu = wall = 0.0
    for step, until in STEPS.items():
        if f"{step}_cpu_s" not in found:
            command = [sys.executable, "-m", "tagseg", "fit", str(data), "--out", str(out), *flags, *until]
            began = time.monotonic()
            child = os.posix_spawn(command[0], command, environment)
            _, status, usage = os.wait4(child, 0)
            if status:
                raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
            cpu += usage.ru_utime + usage.ru_stime
            wall += time.monotonic() - began
            found |= {f"{step}_cpu_s": round(cpu, 1), f"{step}_wall_s": round(wall, 1)}
            found["peak_mb"] = max(found["peak_mb"], round(usage.ru_maxrss / 1024))
            kept.write_text(json.dumps(found))
        cpu, wall = found[f"{step}_cpu_s"], found[f"{step}_wall_s"]
    scores = json.loads((out / "evaluation.json").read_text())
    found["masks_miou"] = _miou(scores, "pseudo_masks")
    found["network_miou"] = _miou(scores, "segmenter")
    return found


def _miou(scores: dict[str, Any], what: str) -> float | None:
    one = scores.get(what)
    return round(100 * one["miou"], 1) if one else None


if __name__ == "__main__":
    main()
