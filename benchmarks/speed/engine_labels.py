"""Where engines, precisions, batches and threads give other labels than PyTorch in fp32, and how many.

    python -m benchmarks.speed.engine_labels         needs tagseg[onnx]; tagseg[openvino] adds OpenVINO

DeepLabV3+ with MobileNetV2 learns from true masks of voc_animals for `--train` steps, so that most pixels have a clear
label. Photographs of its val.txt are predicted at twelve sizes, odd and even, four each, at one scale and mirrored. The
reference is PyTorch in fp32, one thread, one photograph at a time. int8 is quantised on training photographs. A pixel
is at a border if the reference has another label within two pixels.
"""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks import harness
from benchmarks.harness import record
from benchmarks.quality.registration import near_border, train
from PIL import Image

from tagseg.data.images import read_image
from tagseg.data.read import read_dataset
from tagseg.data.records import Dataset
from tagseg.networks.segmenters import Segmenter
from tagseg.prediction.predict import predict
from tagseg.segment.engines import CALIBRATION_IMAGES, CHECKED_IMAGES
from tagseg.segment.graphs import installed
from tagseg.segment.load import load, open_predictor
from tagseg.segment.predictor import Predictor
from tagseg.settings.predict import Engine, Precision, PredictOptions
from tagseg.system.process import processor
from tagseg.training.checkpoint import save_tensors

SIZES = (
    (33, 21), (64, 64), (101, 57), (127, 255), (224, 224), (225, 333),
    (320, 240), (333, 500), (375, 501), (512, 512), (501, 511), (640, 427),
)  # fmt: skip
"""Widths and heights in pixels."""

EACH = 4
BORDER = 2
Picture = np.ndarray[Any, np.dtype[np.uint8]]


def main() -> None:
    """Train the network, predict, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=150, help="steps")
    options = harness.parse(parser, "engine_labels")
    dataset = read_dataset(options.data, harness.animal_settings(options).data)
    network = trained(dataset, options)
    photographs = calibration(dataset, options.out / "calibration")
    groups = [list(pictures(dataset, size)) for size in SIZES]
    torch.set_num_threads(1)
    exact = [found for group in groups for found in seen(load(network, "cpu", "torch"), group, 1)]
    figures: dict[str, Any] = {"cpu": processor(), "steps": options.train, "sides": {}}
    for name, engine, precision, threads, batch in sides():
        predictor = opened(network, photographs, engine, precision, options.out)
        torch.set_num_threads(threads)
        predictor = dataclasses.replace(predictor, threads=threads)
        found = [one for group in groups for one in seen(predictor, group, batch)]
        figures["sides"][name] = compare(exact, found, ("background", *dataset.classes))
        print(name, figures["sides"][name], flush=True)
    print(record("engine_labels", [0], figures, table(figures)).read_text())


def sides() -> Iterator[tuple[str, Engine, Precision, int, int]]:
    """Yield names, engines, precisions, threads, and how many photographs are given together."""
    yield "PyTorch fp32, again", "torch", "fp32", 1, 1
    yield "PyTorch fp32, 2 threads", "torch", "fp32", 2, 1
    yield "PyTorch fp32, 4 threads", "torch", "fp32", 4, 1
    yield "PyTorch fp32, 4 photographs at a time", "torch", "fp32", 1, 4
    yield "PyTorch bf16", "torch", "bf16", 1, 1
    if installed("onnxruntime"):
        yield "ONNX Runtime fp32", "onnxruntime", "fp32", 1, 1
        yield "ONNX Runtime fp32, 2 threads, 4 photographs", "onnxruntime", "fp32", 2, 4
    if installed("openvino"):
        yield "OpenVINO fp32", "openvino", "fp32", 1, 1
        yield "OpenVINO fp32, 2 threads, 4 photographs", "openvino", "fp32", 2, 4
    if installed("onnxruntime"):
        yield "ONNX Runtime int8", "onnxruntime", "int8", 1, 1


def trained(dataset: Dataset, options: argparse.Namespace) -> Path:
    """Return the folder of a network that has learned from true masks."""
    folder: Path = options.out / f"network_{options.train}"
    if (folder / "network.json").exists():
        return folder
    torch.manual_seed(0)
    network = Segmenter("mobilenetv2_100", len(dataset.classes) + 1, 16, str(options.weights), (4, True))
    train(network, dataset, options.out / "labels", options.train, 0)
    about: dict[str, Any] = {"classes": ["background", *dataset.classes], "encoder": "mobilenetv2_100", "stride": 16}
    about |= {"predict_scales": [1.0], "predict_flip": True, "max_side": 1024, "cornered": network.cornered}
    if network.grid is not None:
        about["shift"] = network.grid.shift
    save_tensors(folder / "network.safetensors", network.state_dict(), about)
    (folder / "network.json").write_text(json.dumps(about))
    return folder


def calibration(dataset: Dataset, folder: Path) -> Path:
    """Return a folder of training photographs, as many as int8 is calibrated on and checked with."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    samples = dataset.split("train")
    for sample in samples[:: len(samples) // (CALIBRATION_IMAGES + CHECKED_IMAGES) - 1]:
        shutil.copy(sample.image, folder)
    return folder


def opened(network: Path, photographs: Path, engine: Engine, precision: Precision, out: Path) -> Predictor:
    """Return the network in an engine, which a first prediction prepares."""
    options = PredictOptions(device="cpu", engine=engine, precision=precision, agreement=0.5)
    if engine != "torch":
        shutil.rmtree(out / "prepared", ignore_errors=True)
        predict(network, photographs, out / "prepared", options)
    return open_predictor(network, options).predictor


def pictures(dataset: Dataset, size: tuple[int, int]) -> Iterator[Picture]:
    """Yield photographs for validation, reduced or enlarged to a size."""
    start = EACH * SIZES.index(size)
    for sample in dataset.split("val")[start : start + EACH]:
        yield np.asarray(read_image(sample.image).resize(size, Image.Resampling.BICUBIC))


def seen(predictor: Predictor, group: Sequence[Picture], batch: int) -> Iterator[Any]:
    """Yield the probabilities of photographs of one size, so many of which are given together."""
    for start in range(0, len(group), batch):
        yield from predictor.look(group[start : start + batch])


def compare(exact: Sequence[Any], found: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Return in per cent how many pixels have other labels, at borders and elsewhere, by size and by class, and the
    largest difference of a probability."""
    pixels, other = np.zeros(2, int), np.zeros(2, int)  # inside, at borders
    by_size = [[0, 0] for _ in SIZES]
    by_class = np.zeros((len(names), 2), int)
    for number, (right, one) in enumerate(zip(exact, found, strict=True)):
        label = right.argmax(0)
        wrong, edge = one.argmax(0) != label, near_border(label, BORDER)
        for place, where in enumerate((~edge, edge)):
            pixels[place] += where.sum()
            other[place] += wrong[where].sum()
        by_size[number // EACH][0] += wrong.size
        by_size[number // EACH][1] += int(wrong.sum())
        by_class += np.stack([np.bincount(label[where], minlength=len(names)) for where in (label >= 0, wrong)], 1)
    odd = [w % 2 + h % 2 > 0 for w, h in SIZES]
    parts = {"odd sides": odd, "even sides": [not one for one in odd]}
    counted = {
        kind: [sum(size[i] for size, take in zip(by_size, taken, strict=True) if take) for i in (1, 0)]
        for kind, taken in parts.items()
    }
    largest = max(float(np.abs(a - b).max()) for a, b in zip(exact, found, strict=True))
    return {
        "other, %": per_cent(other.sum(), pixels.sum()),
        "other at borders, %": per_cent(other[1], pixels[1]),
        "other elsewhere, %": per_cent(other[0], pixels[0]),
        **{f"other, {kind}, %": per_cent(*pair) for kind, pair in counted.items()},
        "largest difference": float(f"{largest:.2g}"),
        "by class: share of the pixels, other, %": {
            name: [per_cent(total, by_class[:, 0].sum()), per_cent(changed, total)]
            for name, (total, changed) in zip(names, by_class.tolist(), strict=True)
        },
    }


def per_cent(part: float, whole: float) -> float:
    """Return a share in per cent, to three digits."""
    return float(f"{100 * part / max(whole, 1):.3g}")


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    columns = [
        "other, %",
        *(f"other{where}, %" for where in (" at borders", " elsewhere", ", odd sides", ", even sides")),
    ]
    columns.append("largest difference")
    rows = [f"| side | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    rows += [f"| {name} | {' | '.join(f'{one[key]:g}' for key in columns)} |" for name, one in figures["sides"].items()]
    key = "by class: share of the pixels, other, %"
    shown = [name for name in figures["sides"] if "bf16" in name or "int8" in name]
    if shown:
        rows += ["", f"| class | share of the pixels, % | {' | '.join(f'other by {name}, %' for name in shown)} |"]
        rows.append(f"|---|---:|{'---:|' * len(shown)}")
        for name, (share, _) in figures["sides"][shown[0]][key].items():
            cells = (f"{figures['sides'][side][key][name][1]:g}" for side in shown)
            rows.append(f"| {name} | {share:g} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"CPU: {figures['cpu']}. {len(SIZES) * EACH} photographs of {len(SIZES)} sizes."])


if __name__ == "__main__":
    main()
