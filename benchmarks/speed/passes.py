"""Compare what may compute the forward passes of `fit`: PyTorch, PyTorch with fused layers, ONNX Runtime, OpenVINO.

    python -m benchmarks.speed.passes                        # needs tagseg[onnx]; tagseg[openvino] adds OpenVINO

Two kinds of passes: the layers that the cache of features stores (localise computes the same backbone), at one view of
320 x 240 pixels, and the scores of a segmentation network that predicts training images in self-training, at its three
default scales, mirrored. Every core computes a pass of its own, as `fit` does, but PyTorch without fused layers, whose
passes share hooks, computes one after the other on all cores. In each round all sides compute the same number of
passes, in turns. `ready after` is how long a side takes until its first pass: tracing or exporting, and opening.

Weights are random: time does not depend on them. Differences are those of a value, as a share of the largest.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.harness import record
from torch import Tensor

from tagseg.features.fused import LayersModule, fuse
from tagseg.features.layers import choose_layers
from tagseg.networks.backbones import build_backbone
from tagseg.networks.segmenters import Segmenter
from tagseg.segment.graph_export import export_graph, exportable
from tagseg.segment.graphs import GraphAbout, installed, open_graph
from tagseg.segment.predictor import Predictor
from tagseg.settings.features import FeatureSettings
from tagseg.settings.segment import SegmentSettings
from tagseg.system.process import cores, processor

HEIGHT, WIDTH, IDS = 320, 240, 7
PLAIN = "PyTorch"

Pass = Callable[[], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Side:
    """What computes a pass: its name, whether every core computes its own, and how long it took to get ready."""

    name: str
    side_by_side: bool
    run: Pass
    ready_s: float


def main() -> None:
    """Measure both kinds of passes, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["mobilenetv2_100", "resnet50"], help="timm's names")
    parser.add_argument("--passes", type=int, default=16, help="passes of a side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    rows = [
        "| pass | computed by | ready after, s | passes/s | over PyTorch | difference |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for backbone in options.backbones:
        for kind, sides in (("features", feature_sides(backbone)), ("network", network_sides(backbone))):
            found = measure(sides, options.passes, options.rounds)
            figures[f"{kind}, {backbone}"] = found
            for name, one in found.items():
                ratio = f"{one['over_pytorch']} ({one['least']} to {one['most']})"
                cells = f"{one['ready_s']} | {one['passes_per_s']} | {ratio} | {one['difference']:.1g}"
                rows.append(f"| {kind}, {backbone} | {name} | {cells} |")
    note = f"Medians of {options.rounds} rounds, smallest and largest ratio. {processor()}, {cores()} cores."
    print(record("passes", [0], figures, "\n".join(rows) + f"\n\n{note}").read_text())


def measure(sides: Sequence[Side], passes: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return passes per second of every side, as ratios to PyTorch of the same round, too."""
    expected = sides[0].run()
    largest = [float(np.abs(one).max()) for one in expected]
    speeds: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            speeds[side.name].append(passes / seconds(side, passes))
    found = {}
    for side in sides:
        ratios = [mine / plain for mine, plain in zip(speeds[side.name], speeds[PLAIN], strict=True)]
        apart = [float(np.abs(a - b).max()) / most for a, b, most in zip(side.run(), expected, largest, strict=True)]
        found[side.name] = {
            "ready_s": round(side.ready_s, 1),
            "passes_per_s": round(statistics.median(speeds[side.name]), 2),
            "over_pytorch": round(statistics.median(ratios), 2),
            "least": round(min(ratios), 2),
            "most": round(max(ratios), 2),
            "difference": max(apart),
        }
    return found


def seconds(side: Side, passes: int) -> float:
    """Return the seconds that a side takes for so many passes."""
    threads = cores() if side.side_by_side else 1

    def once(_: int) -> None:
        torch.set_num_threads(1 if side.side_by_side else cores())
        side.run()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(once, range(threads)))  # warms up
        started = time.perf_counter()
        list(pool.map(once, range(passes)))
        return time.perf_counter() - started


def feature_sides(name: str) -> list[Side]:
    """Return what may compute the layers of a backbone."""
    backbone = build_backbone(name, "random", 16).to(memory_format=torch.channels_last).eval()
    layers = [layer.name for layer in choose_layers(backbone, FeatureSettings().layers)]
    images = torch.rand(1, 3, *backbone.fitting_size(HEIGHT, WIDTH)).contiguous(memory_format=torch.channels_last)

    def by(maps: Callable[[Tensor], Sequence[Tensor]]) -> Pass:
        def run() -> Sequence[np.ndarray]:
            with torch.inference_mode():
                return [one.numpy() for one in maps(images)]

        return run

    sides = [ready(PLAIN, False, lambda: by(lambda given: backbone.layer_maps(given, layers)))]

    def fused() -> Pass:
        maps = fuse(backbone, layers)
        assert maps is not None
        return by(maps)

    sides.append(ready("PyTorch, fused", True, fused))
    step = torch.export.Dim("rows", min=2, max=512), torch.export.Dim("columns", min=2, max=512)
    given = {"images": images.contiguous().numpy()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "layers.onnx"

        def exported() -> Pass:
            extra = int(backbone.cornered)
            shapes = ({2 + axis: backbone.stride * step[axis] + extra for axis in (0, 1)},)
            copied: Any = exportable(backbone)
            program: Any = torch.onnx.export(
                LayersModule(copied, layers).eval(), (images.contiguous(),), dynamo=True, verbose=False,
                dynamic_shapes=shapes, input_names=["images"],
            )  # fmt: skip
            program.save(file)
            return onnxruntime_pass(file, given)

        sides.append(ready("ONNX Runtime", True, exported))
        if installed("openvino"):
            side = ready("OpenVINO", True, lambda: openvino_pass(file, given))
            sides.append(Side(side.name, True, side.run, side.ready_s + sides[-1].ready_s))
    return sides


def onnxruntime_pass(file: Path, given: dict[str, np.ndarray]) -> Pass:
    """Return a pass of a graph in ONNX Runtime, in the thread that calls."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, given)


def openvino_pass(file: Path, given: dict[str, np.ndarray]) -> Pass:
    """Return a pass of a graph in OpenVINO, in fp32 and with a stream per core."""
    import openvino

    asked = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": cores(), "INFERENCE_NUM_THREADS": cores()}
    model = openvino.Core().compile_model(openvino.Core().read_model(file), "CPU", asked)
    idle: list[Any] = []

    def run() -> Sequence[np.ndarray]:
        request = idle.pop() if idle else model.create_infer_request()
        request.start_async(given, share_inputs=False)
        request.wait()
        found = [np.array(request.get_output_tensor(number).data) for number in range(len(model.outputs))]
        idle.append(request)
        return found

    return run


def network_sides(encoder: str) -> list[Side]:
    """Return what may compute the class probabilities of a picture in self-training."""
    settings = SegmentSettings()
    network = Segmenter(encoder, IDS, settings.stride, "random", (0, True)).eval()
    network = network.to(memory_format=torch.channels_last)
    classes = tuple(map(str, range(IDS)))
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)

    def by(module: Any) -> Pass:
        predictor = Predictor(
            module, classes, settings.predict_scales, settings.predict_flip, settings.max_side, threads=1
        )
        return lambda: [predictor.look([picture])[0]]

    sides = [ready(PLAIN, False, lambda: by(network))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "passes.onnx"
        about: list[GraphAbout] = []

        def exported() -> Pass:
            about.append(export_graph(network, IDS, file))
            return by(open_graph("onnxruntime", file, about[0], "fp32"))

        sides.append(ready("ONNX Runtime", True, exported))
        if installed("openvino"):
            side = ready("OpenVINO", True, lambda: by(open_graph("openvino", file, about[0], "fp32")))
            sides.append(Side(side.name, True, side.run, side.ready_s + sides[-1].ready_s))
    return sides


def ready(name: str, side_by_side: bool, make: Callable[[], Pass]) -> Side:
    """Return a side, with the seconds until its first pass."""
    started = time.perf_counter()
    run = make()
    run()
    return Side(name, side_by_side, run, time.perf_counter() - started)


if __name__ == "__main__":
    main()
