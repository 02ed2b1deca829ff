"""A segmentation network as an ONNX file: images of any size and number in, probabilities at their size out."""

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
"""Probabilities of ONNX Runtime and PyTorch may differ by this much; both round, and each in its own order."""

_MAX_BYTES = 2_000_000_000
"""An ONNX file is one message of Protocol Buffers, which ends at 2 GB."""

_MAX_SIDE = 1 << 20

Pixels = int | torch.SymInt
"""A side that is known, or one that stands for any."""

_WAYS_ON = (
    "Leave --onnx out: tagseg.load needs the other files alone. Or train another network, with --segment.encoder "
    "mobilenetv2_100 or resnet50 for example, and export that"
)


@dataclass(frozen=True)
class Sides:
    """The sides that a network takes: `step` n + `offset` pixels for n from `lowest` on."""

    step: int
    offset: int
    lowest: int

    def nearest(self, side: Pixels) -> Pixels:
        """Return the side nearest to `side` pixels; of two, that with the even n, as `round` has it.

        A symbol has neither `max` nor `round`, and no `if` may ask for its value.
        """
        doubled = 2 * (side - self.offset) + self.step
        count, rest = doubled // (2 * self.step), doubled % (2 * self.step)
        count = count - (count % 2) * (1 - torch.sym_min(rest, 1))
        fitting: Pixels = torch.sym_max(count, self.lowest) * self.step + self.offset
        return fitting


class AnySize(nn.Module):
    """A segmentation network that brings images of any size to one it takes, and its probabilities back."""

    def __init__(self, network: nn.Module, fitting_size: Callable[[Any, Any], tuple[Pixels, Pixels]]) -> None:
        super().__init__()
        self.network = network
        self.fitting_size = fitting_size

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b ids H W"]:
        """Return the probability of every id, for RGB in 0..1."""
        height, width = images.shape[2:]
        size: Any = self.fitting_size(height, width)
        fitting = F.interpolate(images, size, mode="bilinear", align_corners=False)
        scores = F.interpolate(self.network(fitting), (height, width), mode="bilinear", align_corners=False)
        return scores.softmax(1)


class MeanPool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two matrix products: the exporter writes that one for a single input size."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d p q"]:
        """Return the means over p x q parts of the cells, which overlap where p or q does not divide their number."""
        rows, columns = (_shares(n, parts, features) for n, parts in zip(features.shape[2:], self.size, strict=True))
        pooled: Tensor = rows @ features @ columns.T
        return pooled


def _shares(cells: Pixels, parts: int, like: Tensor) -> Float[Tensor, "parts cells"]:
    cell, part = torch.arange(cells, device=like.device), torch.arange(parts, device=like.device)[:, None]
    inside = (cell >= part * cells // parts) & (cell < -(-(part + 1) * cells // parts))
    weights = inside.to(like.dtype)
    return weights / weights.sum(1, keepdim=True)


def require_exporter() -> None:
    """Raise ValueError when a package that writes ONNX files is not installed."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--onnx: needs {' and '.join(missing)}: pip install 'tagseg[onnx]'")


def write_onnx(network: Segmenter, about: Mapping[str, Any], path: Path) -> float | None:
    """Write `network` to `path` and hold it against PyTorch by ONNX Runtime.

    The graph takes `images` (float32, batch 3 height width, RGB in 0..1, any size) and returns `probabilities` (batch
    ids height width); normalisation is inside. `about` goes into its metadata_props, each value as JSON.

    Returns:
        the largest difference of a probability, or None where ONNX Runtime is not installed.

    Raises:
        ValueError: when a package is missing, the exporter cannot write the network, or the file computes something
            else.
    """
    require_exporter()
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > _MAX_BYTES:
        raise ValueError(f"--onnx: the weights take {size / 1e9:.1f} GB, an ONNX file holds 2 at most. {_WAYS_ON}")
    sides = probe_sides(network)
    program = _program(AnySize(_exportable(network), lambda h, w: (sides.nearest(h), sides.nearest(w))).eval(), sides)
    _save(program, about, path)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return _check(path, AnySize(network, lambda h, w: network.fitting_size(float(h), float(w))).eval(), sides)


def probe_sides(network: Segmenter) -> Sides:
    """Return the rule behind `network.fitting_size`, found by asking it."""
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
    # The sides of the example differ from each other and fit nothing, or the exporter would take them for fixed.
    unit = sides.nearest(1)
    example = torch.rand(2, 3, 2 * unit + 5, 3 * unit + 2, generator=torch.Generator().manual_seed(0))
    names = {0: ("batch", 4096), 2: ("height", _MAX_SIDE), 3: ("width", _MAX_SIDE)}
    free = {axis: torch.export.Dim(name, min=1, max=most) for axis, (name, most) in names.items()}
    try:
        return torch.onnx.export(
            model, (example,), dynamo=True, verbose=False, dynamic_shapes=(free,), input_names=["images"],
            output_names=["probabilities"],
        )  # fmt: skip
    except RuntimeError as error:  # all of the exporter's errors are
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"--onnx: PyTorch's exporter cannot write this network ({reason}). {_WAYS_ON}") from error


def _save(program: Any, about: Mapping[str, Any], path: Path) -> None:
    import onnx

    model = program.model_proto
    # The exporter notes the lines of code that each node comes from, with the paths of this machine.
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.helper.set_model_props(model, {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()})
    onnx.save(model, path)


@torch.no_grad()
def _check(path: Path, reference: AnySize, sides: Sides) -> float:
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4  # what goes wrong is told below
    generator, unit, worst = torch.Generator().manual_seed(1), sides.nearest(1), 0.0
    try:
        session = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
        for shape in ((1, 3, unit, unit), (2, 3, unit + 7, 2 * unit + 3), (3, 3, 3 * unit, 5)):
            images = torch.rand(shape, generator=generator)
            (seen,) = session.run(["probabilities"], {"images": images.numpy()})
            worst = max(worst, float((torch.from_numpy(seen) - reference(images)).abs().max()))
    except Exception as error:  # ONNX Runtime's own errors have no other ancestor
        reason = str(error).splitlines()[0][:300]
        raise ValueError(f"--onnx: ONNX Runtime cannot run what the exporter wrote ({reason}). {_WAYS_ON}") from error
    if not worst <= TOLERANCE:
        raise ValueError(
            f"--onnx: probabilities of ONNX Runtime and PyTorch differ by {worst:.2g}, expected {TOLERANCE} at most. "
            f"{_WAYS_ON}"
        )
    return worst
