"""Train classifier and segmenter with full settings on a GPU: resnet50, 321 pixels, 20 epochs, voc_animals, tags only.

    python -m benchmarks.quality.gpu_voc_animals --data DIR --weights resnet50.safetensors
    python -m benchmarks.quality.gpu_voc_animals ... --minutes 9      stop in time; run again to continue

Plain CAM, the full method, its segmenter, and the same on full masks; a table with seconds and peak GPU memory of every
stage, then one step of each training in fp32 and bf16. Needs a CUDA device; gpu_voc_animals.toml has the settings.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from benchmarks import harness
from benchmarks.harness import iou_rows, record

from tagseg.data.prepare import prepare
from tagseg.evaluate.scores import Scores, read_evaluation
from tagseg.pipeline import fit_until
from tagseg.run.folder import Run
from tagseg.run.stages import STAGES
from tagseg.segment.train import build_segmenter, mask_loss
from tagseg.settings.settings import Settings
from tagseg.studies.ablation.arms import arm_settings, run_folder
from tagseg.studies.ablation.scores import ArmScore, read_score, score_run
from tagseg.studies.full_supervision import train_upper_bound
from tagseg.system.progress import bars

T = TypeVar("T")


class OutOfTime(Exception):
    """The time limit is over; finished work is kept."""


def main() -> None:
    """Run everything, or as much as fits into the minutes given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, help="stop after this time (a training continues after its last epoch)"
    )
    parser.set_defaults(backbone="resnet50")
    options = harness.parse(parser, "gpu_voc_animals")
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device")
    track = until(time.monotonic() + 60 * options.minutes) if options.minutes else bars
    base = Settings.from_toml(harness.BENCHMARKS / "quality/gpu_voc_animals.toml")
    train = dataclasses.replace(base.train, backbone=options.backbone, weights=str(options.weights))
    base = dataclasses.replace(base, train=train, seed=options.seed)
    try:
        runs = {arm: Run(run_folder(options.out, arm, options.seed)) for arm in ("cam", "both")}
        memory = run_all(options.data, runs, base, track)
    except OutOfTime:
        print("Out of time; run again to continue.")
        return
    write_results(runs, base, memory, options.seed)


def until(deadline: float) -> Any:
    """Return a progress reporter that raises OutOfTime after the deadline."""

    def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        for item in bars(items, title, total):
            if time.monotonic() > deadline:
                raise OutOfTime
            yield item

    return track


def run_all(data: Path, runs: dict[str, Run], base: Settings, track: Any) -> dict[str, int]:
    """Run all stages of both runs and the upper bound; returns the peak GPU memory in MB of those run now."""
    memory = {}
    fit_until(data, runs["cam"].root, "train", arm_settings(base, "cam", base.seed), track=track)
    for stage in STAGES:
        torch.cuda.reset_peak_memory_stats()
        fit_until(data, runs["both"].root, stage, arm_settings(base, "both", base.seed), track=track)
        memory[stage] = round(torch.cuda.max_memory_allocated() / 2**20)
    train_upper_bound(runs["both"].root, track=track)
    return memory


def step_ms(settings: Settings, precision: str) -> float:
    """Return the milliseconds of one training step of the segmenter, the median of 20."""
    torch.manual_seed(0)
    network = build_segmenter(settings, 7)[0].to("cuda", memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    side = network.fitting_size(settings.segment.crop, settings.segment.crop)
    pictures = torch.rand(settings.segment.batch, 3, *side, device="cuda").to(memory_format=torch.channels_last)
    masks = torch.randint(0, 7, (settings.segment.batch, *side), device="cuda")
    times = []
    for _ in range(25):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            scores = network(pictures)
        mask_loss(scores, masks).backward()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 1000 * sorted(times[5:])[10]


def write_results(runs: dict[str, Run], settings: Settings, memory: dict[str, int], seed: int) -> None:
    """Write the figures and their table."""
    evaluation = read_evaluation(runs["both"])
    prepared = prepare(runs["cam"])
    cam = read_score(runs["cam"], runs["cam"].settings(), prepared) or score_run(prepared, runs["cam"], "cam", bars)
    pseudo, weak, full = evaluation.pseudo_masks, evaluation.segmenter, evaluation.full_supervision
    assert pseudo and weak and full, "the data set has masks"
    stages = runs["both"].manifest().stages
    steps = {precision: step_ms(settings, precision) for precision in ("fp32", "bf16")}
    figures: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "pseudo_miou_cam": round(100 * cam.miou, 2),
        "pseudo_miou_full": round(100 * pseudo.miou, 2),
        "weak_miou": round(100 * weak.miou, 2),
        "full_miou": round(100 * full.miou, 2),
        "ratio": round(100 * weak.miou / full.miou, 2),
        "seconds": {stage: note.seconds for stage, note in stages.items()},
        "peak_gpu_mb": memory,
        "segmenter_step_ms": {precision: round(value, 2) for precision, value in steps.items()},
    }
    columns: dict[str, ArmScore | Scores] = {
        "plain CAM, pseudo-masks": cam,
        "full method, pseudo-masks": pseudo,
        "segmenter": weak,
        "full supervision": full,
    }
    rows = iou_rows(evaluation.classes, columns)
    rows += ["", "| stage of the full run | seconds | peak GPU MB |", "|---|---:|---:|"]
    rows += [f"| {stage} | {values['seconds']:.0f} | {memory.get(stage, 0)} |" for stage, values in stages.items()]
    rows += ["", f"A step of the segmenter: {steps['fp32']:.1f} ms in fp32, {steps['bf16']:.1f} ms in bf16."]
    print(record("gpu_voc_animals", [seed], figures, "\n".join(rows)).read_text())


if __name__ == "__main__":
    main()
