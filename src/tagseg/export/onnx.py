"""A segmentation network as an ONNX file that takes batches of images of any size and returns probabilities."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.networks.registration import Pixels
from tagseg.networks.segmenters import Segmenter
from tagseg.segment.graph_export import (
    MAX_EXPORTED_SIDE,
    MAX_GRAPH_BYTES,
    Sides,
    exportable,
    probe_sides,
    require_exporter,
    save_graph,
)

TOLERANCE = 1e-3
"""How much the probabilities of ONNX Runtime and PyTorch may differ; the two round in a different order."""

CHECKED_SIZES = (
    (1, 1),
    (1.3, 2.1),
    (3, 0.2),
    (0.66, 1.04),  # 21 x 33 for a smallest side of 32
    (2, 2),
    (1.47, 2.6),
    (0.6, 3),
    (2.25, 1.1),
    (3.4, 1.7),
    (0.04, 1),
)
"""Sizes at which the exported graph is compared with PyTorch, in units of the smallest side that fits the network."""

_WHAT_TO_DO = (
    "Export without --onnx, which tagseg.load does not need, or train and export another network, for example with "
    "--segment.encoder mobilenetv2_100 or resnet50"
)


class AnySize(nn.Module):
    """A segmentation network that resizes any image to a size it accepts, and its scores back to the image's size."""

    def __init__(self, network: nn.Module, fitting_size: Callable[[Any, Any], tuple[Pixels, Pixels]]) -> None:
        super().__init__()
        self.network = network
        self.fitting_size = fitting_size

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b ids H W"]:
        """Return the probability of every id for RGB images in 0..1."""
        height, width = images.shape[2:]
        size: Any = self.fitting_size(height, width)
        fitting = F.interpolate(images, size, mode="bilinear", align_corners=False)
        scores = F.interpolate(self.network(fitting), (height, width), mode="bilinear", align_corners=False)
        return scores.softmax(1)


def write_onnx(network: Segmenter, about: Mapping[str, Any], path: Path) -> float | None:
    """Write `network` to `path` and compare ONNX Runtime's results with PyTorch's.

    The graph takes `images` (float32, batch 3 height width, RGB in 0..1, any size) and returns `probabilities` (batch
    ids height width); it normalises the images itself. `about` goes into its metadata_props, each value as JSON.

    Returns:
        the largest difference of a probability, or None if ONNX Runtime is not installed.

    Raises:
        ValueError: when a package is missing, the exporter cannot write the network, or the results differ too much.
    """
    require_exporter()
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > MAX_GRAPH_BYTES:
        raise ValueError(
            f"--onnx: the weights take {size / 1e9:.1f} GB, but an ONNX file holds at most 2 GB. {_WHAT_TO_DO}"
        )
    sides = probe_sides(network)
    program = _program(AnySize(exportable(network), lambda h, w: (sides.nearest(h), sides.nearest(w))).eval(), sides)
    save_graph(program.model_proto, about, path)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return _check(probabilities_by_onnx(path), "ONNX Runtime", network)


def _program(model: AnySize, sides: Sides) -> Any:
    # Both sides of the example differ and need resizing; otherwise the exporter would treat them as fixed.
    unit = sides.nearest(1)
    example = torch.rand(2, 3, 2 * unit + 5, 3 * unit + 2, generator=torch.Generator().manual_seed(0))
    names = {0: ("batch", 4096), 2: ("height", MAX_EXPORTED_SIDE), 3: ("width", MAX_EXPORTED_SIDE)}
    free = {axis: torch.export.Dim(name, min=1, max=most) for axis, (name, most) in names.items()}
    try:
        return torch.onnx.export(
            model, (example,), dynamo=True, verbose=False, dynamic_shapes=(free,), input_names=["images"],
            output_names=["probabilities"],
        )  # fmt: skip
    except RuntimeError as error:  # the base class of all of the exporter's errors
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"--onnx: PyTorch's exporter cannot write this network ({reason}). {_WHAT_TO_DO}") from error


@torch.no_grad()
def _check(run: Callable[[Any], Any], engine: str, network: Segmenter) -> float:
    """Return the largest difference between an engine's probabilities and PyTorch's, over ten sizes, odd ones too."""
    reference = AnySize(network, lambda h, w: network.fitting_size(float(h), float(w))).eval()
    generator, unit, worst = torch.Generator().manual_seed(1), probe_sides(network).nearest(1), 0.0
    flag = f"--{engine.lower()}" if engine == "OpenVINO" else "--onnx"
    for number, (height, width) in enumerate(CHECKED_SIZES):
        images = torch.rand(
            1 + number % 3, 3, max(int(unit * height), 1), max(int(unit * width), 1), generator=generator
        )
        try:
            seen = run(images.numpy())
        except Exception as error:  # the engines' errors have no narrower base class
            reason = str(error).splitlines()[0][:300]
            raise ValueError(f"{flag}: {engine} cannot run the exported file ({reason}). {_WHAT_TO_DO}") from error
        worst = max(worst, float((torch.from_numpy(seen) - reference(images)).abs().max()))
    if not worst <= TOLERANCE:
        raise ValueError(
            f"{flag}: the probabilities of {engine} and PyTorch differ by {worst:.2g}, expected at most {TOLERANCE}. "
            f"{_WHAT_TO_DO}"
        )
    return worst


def probabilities_by_onnx(path: Path) -> Callable[[Any], Any]:
    """Return what computes the probabilities of images with an exported file in ONNX Runtime.

    Raises:
        ValueError: when ONNX Runtime cannot run it.
    """
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4  # errors are raised instead
    try:
        session = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).splitlines()[0][:300]
        raise ValueError(f"--onnx: ONNX Runtime cannot run the exported file ({reason}). {_WHAT_TO_DO}") from error
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def write_openvino(network: Segmenter, source: Path) -> float:
    """Write the graph in `source`, a model.onnx, as model.xml and model.bin beside it; return the largest difference
    between OpenVINO's probabilities, computed in fp32, and PyTorch's.

    Raises:
        ValueError: when OpenVINO cannot run it, or the results differ too much.
    """
    import openvino

    core = openvino.Core()
    # By default the weights would be stored in half precision.
    openvino.save_model(core.read_model(source), source.with_suffix(".xml"), compress_to_fp16=False)
    request = core.compile_model(
        source.with_suffix(".xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    ).create_infer_request()
    return _check(lambda images: request.infer({"images": images})[0].copy(), "OpenVINO", network)
