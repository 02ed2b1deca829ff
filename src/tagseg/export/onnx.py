"""A segmentation network as an ONNX file that takes batches of images of any size and returns probabilities."""

import copy
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.networks.segmenters import Segmenter

TOLERANCE = 1e-3
"""How much the probabilities of ONNX Runtime and PyTorch may differ; the two round in a different order."""

_MAX_BYTES = 2_000_000_000
"""An ONNX file is one Protocol Buffers message, and those are limited to 2 GB."""

_MAX_SIDE = 1 << 20

Pixels = int | torch.SymInt
"""A known side, or a symbol for any side."""

_WHAT_TO_DO = (
    "Export without --onnx, which tagseg.load does not need, or train and export another network, for example with "
    "--segment.encoder mobilenetv2_100 or resnet50"
)


@dataclass(frozen=True)
class Sides:
    """The image sides that a network accepts: `step * n + offset` pixels for every n >= `lowest`."""

    step: int
    offset: int
    lowest: int

    def nearest(self, side: Pixels) -> Pixels:
        """Return the accepted side nearest to `side` pixels; a tie goes to the even n, as with `round`.

        Symbols support neither `max` nor `round`, and an `if` on their value would fix them.
        """
        doubled = 2 * (side - self.offset) + self.step
        count, rest = doubled // (2 * self.step), doubled % (2 * self.step)
        count = count - (count % 2) * (1 - torch.sym_min(rest, 1))
        fitting: Pixels = torch.sym_max(count, self.lowest) * self.step + self.offset
        return fitting


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


class MeanPool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products, since the exporter would fix its input size."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d p q"]:
        """Return the means over p x q parts of the cells; parts overlap if p or q does not divide their number."""
        rows, columns = (_shares(n, parts, features) for n, parts in zip(features.shape[2:], self.size, strict=True))
        pooled: Tensor = rows @ features @ columns.T
        return pooled


def _shares(cells: Pixels, parts: int, like: Tensor) -> Float[Tensor, "parts cells"]:
    cell, part = torch.arange(cells, device=like.device), torch.arange(parts, device=like.device)[:, None]
    inside = (cell >= part * cells // parts) & (cell < -(-(part + 1) * cells // parts))
    weights = inside.to(like.dtype)
    return weights / weights.sum(1, keepdim=True)


def require_exporter() -> None:
    """Check that the packages that write ONNX files are installed.

    Raises:
        ValueError: when one is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--onnx: requires {' and '.join(missing)}; install with pip install 'tagseg[onnx]'")


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
    if size > _MAX_BYTES:
        raise ValueError(
            f"--onnx: the weights take {size / 1e9:.1f} GB, but an ONNX file holds at most 2 GB. {_WHAT_TO_DO}"
        )
    sides = probe_sides(network)
    program = _program(AnySize(_exportable(network), lambda h, w: (sides.nearest(h), sides.nearest(w))).eval(), sides)
    _save(program, about, path)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return _check(path, AnySize(network, lambda h, w: network.fitting_size(float(h), float(w))).eval(), sides)


def probe_sides(network: Segmenter) -> Sides:
    """Return the rule of `network.fitting_size`, found by calling it."""
    found = sorted({network.fitting_size(float(side), float(side))[0] for side in range(1, 513)})
    step = found[1] - found[0]
    sides = Sides(step, found[0] % step, found[0] // step)
    assert found == [step * n + sides.offset for n in range(sides.lowest, sides.lowest + len(found))], found
    return sides


def _exportable(network: nn.Module) -> nn.Module:
    copied = copy.deepcopy(network)
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                parts: Any = child.output_size if isinstance(child.output_size, tuple) else (child.output_size,) * 2
                if None not in parts:
                    setattr(module, name, MeanPool(parts))
    return copied


def _program(model: AnySize, sides: Sides) -> Any:
    # Both sides of the example differ and need resizing; otherwise the exporter would treat them as fixed.
    unit = sides.nearest(1)
    example = torch.rand(2, 3, 2 * unit + 5, 3 * unit + 2, generator=torch.Generator().manual_seed(0))
    names = {0: ("batch", 4096), 2: ("height", _MAX_SIDE), 3: ("width", _MAX_SIDE)}
    free = {axis: torch.export.Dim(name, min=1, max=most) for axis, (name, most) in names.items()}
    try:
        return torch.onnx.export(
            model, (example,), dynamo=True, verbose=False, dynamic_shapes=(free,), input_names=["images"],
            output_names=["probabilities"],
        )  # fmt: skip
    except RuntimeError as error:  # the base class of all of the exporter's errors
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"--onnx: PyTorch's exporter cannot write this network ({reason}). {_WHAT_TO_DO}") from error


def _save(program: Any, about: Mapping[str, Any], path: Path) -> None:
    import onnx

    model = program.model_proto
    # The exporter records the source line of each node, with paths of this machine.
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.helper.set_model_props(model, {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()})
    onnx.save(model, path)


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
