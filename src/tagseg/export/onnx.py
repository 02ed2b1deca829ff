"""A segmentation network as an ONNX file that takes batches of images of any size and returns probabilities."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.networks.segmenters import Segmenter
from tagseg.segment.graph_export import (
    MAX_EXPORTED_SIDE,
    MAX_GRAPH_BYTES,
    Pixels,
    Sides,
    exportable,
    probe_sides,
    require_exporter,
    save_graph,
)

TOLERANCE = 1e-3
"""How much the probabilities of ONNX Runtime and PyTorch may differ; the two round in a different order."""

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
    save_graph(program, about, path)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return _check(path, AnySize(network, lambda h, w: network.fitting_size(float(h), float(w))).eval(), sides)


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
def _check(path: Path, reference: AnySize, sides: Sides) -> float:
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4  # errors are raised below instead
    generator, unit, worst = torch.Generator().manual_seed(1), sides.nearest(1), 0.0
    try:
        session = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
        for shape in ((1, 3, unit, unit), (2, 3, unit + 7, 2 * unit + 3), (3, 3, 3 * unit, 5)):
            images = torch.rand(shape, generator=generator)
            (seen,) = session.run(["probabilities"], {"images": images.numpy()})
            worst = max(worst, float((torch.from_numpy(seen) - reference(images)).abs().max()))
    except Exception as error:  # ONNX Runtime's errors have no narrower base class
        reason = str(error).splitlines()[0][:300]
        raise ValueError(f"--onnx: ONNX Runtime cannot run the exported file ({reason}). {_WHAT_TO_DO}") from error
    if not worst <= TOLERANCE:
        raise ValueError(
            f"--onnx: the probabilities of ONNX Runtime and PyTorch differ by {worst:.2g}, expected at most "
            f"{TOLERANCE}. {_WHAT_TO_DO}"
        )
    return worst
