"""Compare the engines of `tagseg predict` with version 0.1: images per second, labels, mIoU, memory, first mask.

    git worktree add ../tagseg-0.1 4b5e772 && make -C ../tagseg-0.1 venv
    python -m benchmarks.speed.engines --old ../tagseg-0.1      # needs tagseg[onnx]; tagseg[openvino] adds OpenVINO

The photographs are the first of val.txt, at the default scales and mirrored. In each round every side predicts all of
them and then one of them, each time as a command of its own, and the sides take turns. Images per second are those
after the start: the other images, divided by what all take longer than one. All ratios to 0.1 are of figures of one
round; the table has the median, and the smallest and largest ratio. CPU seconds are those of the command and all its
threads; other work on the machine disturbs them less than the time on the clock. Waiting threads sleep
(OMP_WAIT_POLICY=PASSIVE), or those of PyTorch would spin and 0.1 would look slower than it is.

The network is trained here for one pass over the true masks of train_aug.txt, because only speed and agreement are
measured (--network takes another that 0.1 reads). Its deep features are placed as in 0.1, which knows no other way.
Labels are compared with those of 0.1. int8 is quantised on other photographs, of train_aug.txt. A measured round is
kept, so the benchmark can be stopped and run again.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import harness
from benchmarks.harness import record
from benchmarks.quality.registration import two_ways
from PIL import Image

from tagseg.data.images import read_image
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import VOID, Sample
from tagseg.data.true_masks import load_mask
from tagseg.errors import RunError
from tagseg.evaluate.iou import Iou, confusion, iou
from tagseg.prediction.predict import predict
from tagseg.run.open import open_run
from tagseg.segment.engines import CALIBRATION_IMAGES, CHECKED_IMAGES, spread
from tagseg.segment.graphs import installed
from tagseg.segment.labels import true_labels
from tagseg.segment.train import train_segmenter
from tagseg.settings.predict import PredictOptions
from tagseg.settings.settings import Settings
from tagseg.system.process import processor
from tagseg.training.checkpoint import load_tensors, save_tensors

OLD = "0.1"
SIDES: dict[str, tuple[str, ...]] = {
    OLD: (),
    "torch fp32": ("--engine", "torch"),
    "onnxruntime fp32": ("--engine", "onnxruntime"),
    "onnxruntime int8": ("--engine", "onnxruntime", "--precision", "int8"),
    "openvino fp32": ("--engine", "openvino"),
    "openvino bf16": ("--engine", "openvino", "--precision", "bf16"),
}
PIXELS = 16_000_000
LAUNCHER = """
import os, sys, time
began = time.monotonic()
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
if status:
    raise SystemExit(f"{sys.argv[1:]} ended with {os.waitstatus_to_exitcode(status)}")
print(time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""
"""Runs a command and prints its seconds, CPU seconds and peak memory in MB. A process of its own, because the peak of
a new process is at least that of the process that starts it."""
FLAGS = ("fma", "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Instructions that decide how fast the precisions are."""


def main() -> None:
    """Measure every side and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=Path, required=True, help="a checkout of 0.1, with its .venv")
    parser.add_argument("--network", type=Path, help="a segmentation network of voc_animals; by default one is trained")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full-size", action="store_true", help="also the memory of 16 megapixels with --max-side 0")
    options = harness.parse(parser, "engines")
    settings = Settings(workers=0)
    train = dataclasses.replace(settings.train, backbone=options.backbone, weights=str(options.weights))
    settings = dataclasses.replace(settings, train=train, segment=dataclasses.replace(settings.segment, epochs=1))
    prepared = prepare(open_run(options.out / "run", options.data, settings))
    network = options.network or _trained(prepared, settings, options.out)
    samples = [sample for sample in prepared.dataset.split("val") if sample.mask is not None][: options.images]
    sides = [side for side in SIDES if _computes(side, network, prepared, options.out)]
    kept = options.out / f"measured_{len(samples)}.json"
    measured: dict[str, dict[str, Sequence[float]]] = json.loads(kept.read_text()) if kept.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        images, one = Path(folder) / "images", Path(folder) / "one"
        for place, some in ((images, samples), (one, samples[:1])):
            place.mkdir()
            for sample in some:
                (place / sample.image.name).symlink_to(sample.image.resolve())
        for turn in range(options.rounds):
            for side in sides:
                if f"{turn} {side}" not in measured:
                    whole = _seconds(options, side, network, images, options.out / "masks" / side)
                    first = _seconds(options, side, network, one, Path(folder) / "first")
                    measured[f"{turn} {side}"] = {"whole": whole, "first": first}
                    kept.write_text(json.dumps(measured))
                    print(f"round {turn}, {side}: {whole[0]:.1f} s, {whole[1]:.1f} CPU s", flush=True)
        figures = _figures(measured, sides, options, prepared, samples)
        if options.full_size:
            large = Path(folder) / "large"
            _enlarge(samples[0].image, large)
            spent = _seconds(options, "onnxruntime fp32", network, large, Path(folder) / "full", "--max-side", "0")
            figures["peak_mb_16_megapixels_full_size"] = round(spent[2])
    print(record("engines", [0], figures, _table(figures, sides, options, len(samples))).read_text())


def _trained(prepared: Prepared, settings: Settings, out: Path) -> Path:
    """Return the folder of a network that one pass over the true masks has trained."""
    network, trained = out / "network", out / "trained"
    if (network / "network.json").exists():
        return network
    labels = out / "labels"
    two_ways(lambda: train_segmenter(true_labels(prepared, labels), labels, settings, trained), "library")
    tensors, about = load_tensors(trained / "network.safetensors")
    known = {name: value for name, value in about.items() if name not in ("cornered", "shift")}
    save_tensors(network / "network.safetensors", tensors, known)
    (network / "network.json").write_text(json.dumps(known))
    return network


def _computes(side: str, network: Path, prepared: Prepared, out: Path) -> bool:
    """Tell whether a side can compute here; a graph is exported, quantised and compared with PyTorch on the way."""
    if side in (OLD, "torch fp32"):
        return True
    engine, precision = side.split()
    if not installed(engine):
        return False
    train = prepared.dataset.split("train")
    others = [sample.image for sample in spread(train, CALIBRATION_IMAGES + CHECKED_IMAGES)]
    options = PredictOptions(device="cpu", engine=engine, precision=precision, force=True)  # type: ignore[arg-type]
    try:
        predict(network, others, out / "others", options)
    except RunError as error:
        print(f"{side}: {error}")
        return False
    return True


def _seconds(
    options: argparse.Namespace, side: str, network: Path, images: Path, out: Path, *flags: str
) -> tuple[float, float, float]:
    """Predict by a command; return its seconds, its CPU seconds and its peak memory in MB."""
    shutil.rmtree(out, ignore_errors=True)
    python = options.old / ".venv/bin/python" if side == OLD else Path(sys.executable)
    command = [str(python), "-m", "tagseg", "predict", str(network), str(images), "--out", str(out)]
    command += [*SIDES[side], "--device", "cpu", *flags]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("OMP_NUM_THREADS", None)
    launched = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(launched, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds, cpu, megabytes = map(float, done.stdout.split())
    return seconds, cpu, megabytes


def _figures(
    measured: dict[str, dict[str, Sequence[float]]],
    sides: list[str],
    options: argparse.Namespace,
    prepared: Prepared,
    samples: list[Sample],
) -> dict[str, Any]:
    """Return the figures of all sides."""
    scores, agreement = _labels(sides, options.out / "masks", prepared, samples)
    reference = scores[OLD]
    found: dict[str, Any] = {}
    for side in sides:
        rounds = [measured[f"{turn} {side}"] for turn in range(options.rounds)]
        others = [measured[f"{turn} {OLD}"] for turn in range(options.rounds)]
        pace = {
            unit: [(len(samples) - 1) / (one["whole"][i] - one["first"][i]) for one in rounds]
            for i, unit in enumerate(("s", "cpu_s"))
        }
        ratios = {
            name: sorted(
                (old["whole"][i] - old["first"][i]) / (one["whole"][i] - one["first"][i])
                for one, old in zip(rounds, others, strict=True)
            )
            for i, name in enumerate(("over_0_1", "over_0_1_cpu"))
        }
        lost = [
            None if a is None or b is None else round(100 * (a - b), 2)
            for a, b in zip(reference.iou, scores[side].iou, strict=True)
        ]
        found[side] = {
            "images_per_s": round(statistics.median(pace["s"]), 2),
            "images_per_cpu_s": round(statistics.median(pace["cpu_s"]), 2),
            **{name: round(statistics.median(values), 2) for name, values in ratios.items()},
            **{f"{name}_spread": [round(values[0], 2), round(values[-1], 2)] for name, values in ratios.items()},
            "label_agreement": round(agreement[side], 5),
            "miou_loss": round(100 * (reference.miou - scores[side].miou), 2),
            "iou_loss": dict(zip(("background", *prepared.dataset.classes), lost, strict=True)),
            "peak_mb": round(max(one["whole"][2] for one in rounds)),
            "first_mask_s": round(statistics.median(one["first"][0] for one in rounds), 2),
            "first_mask_cpu_s": round(statistics.median(one["first"][1] for one in rounds), 2),
        }
    cpu = {"name": processor(), "flags": _flags()}
    about = {"images": len(samples), "rounds": options.rounds, "miou_0_1": round(100 * reference.miou, 2)}
    return {"cpu": cpu, **about, "sides": found}


def _labels(
    sides: list[str], masks: Path, prepared: Prepared, samples: list[Sample]
) -> tuple[dict[str, Iou], dict[str, float]]:
    """Return every side's IoU, and the share of its labels that 0.1 gives, too."""
    ids = len(prepared.dataset.classes) + 1
    matrices = {side: np.zeros((ids, ids), np.int64) for side in sides}
    same, pixels = dict.fromkeys(sides, 0), 0
    for sample in samples:
        truth = load_mask(sample, prepared.dataset, prepared.sizes[sample.id])
        given = {side: np.asarray(Image.open(masks / side / f"{sample.image.stem}.png")) for side in sides}
        pixels += truth.size
        assert truth.max() <= VOID
        for side, mask in given.items():
            matrices[side] += confusion(truth, mask, ids)
            same[side] += int((mask == given[OLD]).sum())
    return {side: iou(matrix) for side, matrix in matrices.items()}, {side: same[side] / pixels for side in sides}


def _table(figures: dict[str, Any], sides: list[str], options: argparse.Namespace, images: int) -> str:
    """Return the table of the figures."""
    head = "| | images/s | over 0.1 | by CPU seconds | labels of 0.1, % | mIoU lost | peak MB | first mask, s | CPU s |"
    rows = [head, "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for side in sides:
        one = figures["sides"][side]
        spread = {
            name: "{} ({} to {})".format(one[name], *one[f"{name}_spread"]) for name in ("over_0_1", "over_0_1_cpu")
        }
        rows.append(
            f"| {side} | {one['images_per_s']} | {spread['over_0_1']} | {spread['over_0_1_cpu']} | "
            f"{100 * one['label_agreement']:.3f} | {one['miou_loss']} | {one['peak_mb']} | {one['first_mask_s']} | "
            f"{one['first_mask_cpu_s']} |"
        )
    classes = list(figures["sides"][OLD]["iou_loss"])
    rows += ["", "| IoU lost, points | " + " | ".join(classes) + " |", "|---|" + "---:|" * len(classes)]
    for side in sides[1:]:
        rows.append(f"| {side} | " + " | ".join(map(str, figures["sides"][side]["iou_loss"].values())) + " |")
    named = [flag for flag in FLAGS if flag in figures["cpu"]["flags"]]
    absent = [flag for flag in FLAGS if flag not in named]
    rows += [
        "",
        f"{images} photographs, default scales and mirror, {options.rounds} rounds; medians, and the smallest and "
        f"largest ratio. 0.1 has {figures['miou_0_1']} mIoU. {figures['cpu']['name']} with {', '.join(named)}; "
        f"missing: {', '.join(absent) or 'none of those asked for'}. Load of the machine when this ended: "
        f"{os.getloadavg()[0]:.1f}.",
    ]
    if "peak_mb_16_megapixels_full_size" in figures:
        rows[-1] += (
            f" A photograph of 16 megapixels at full resolution: {figures['peak_mb_16_megapixels_full_size']} MB "
            "(onnxruntime fp32)."
        )
    return "\n".join(rows)


def _flags() -> list[str]:
    """Return the processor's flags."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])


def _enlarge(file: Path, folder: Path) -> None:
    """Write an image at 16 megapixels into a folder."""
    image = read_image(file)
    factor = (PIXELS / (image.width * image.height)) ** 0.5
    folder.mkdir()
    size = round(image.width * factor), round(image.height * factor)
    image.resize(size, Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=90)


if __name__ == "__main__":
    main()
