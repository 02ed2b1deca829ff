"""Export of a segmentation network as an ONNX graph, for the engines and for model.onnx."""

import copy
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.networks.registration import Pixels
from tagseg.networks.segmenters import Segmenter
from tagseg.segment.graph_passes import add_passes
from tagseg.segment.graphs import Graph, GraphAbout, graph_inputs
from tagseg.segment.infer import probabilities, resized
from tagseg.system.files import writing
from tagseg.system.records import json_text

MAX_GRAPH_BYTES = 2_000_000_000
"""An ONNX file is one Protocol Buffers message, and those are limited to 2 GB."""

MAX_EXPORTED_SIDE = 1 << 20

SCORE_TOLERANCE = 1e-3
"""How much a graph's scores may differ from PyTorch's, as a share of the largest score: both round in other orders."""

CHECKED_PICTURES = (
    (21, 33),
    (64, 48),
    (33, 21),
    (101, 57),
    (40, 30),
    (47, 83),
    (96, 19),
    (35, 72),
    (110, 55),
    (17, 90),
)
"""Heights and widths of the pictures on which a graph is compared with PyTorch, at a larger, its own and a smaller
scale in turn."""


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


def require_exporter(flag: str = "--onnx") -> None:
    """Check that the packages that write ONNX files are installed.

    Raises:
        ValueError: when one is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{flag}: requires {' and '.join(missing)}; install with pip install 'tagseg[onnx]'")


def probe_sides(network: Segmenter) -> Sides:
    """Return the rule of `network.fitting_size`, found by calling it."""
    found = sorted({network.fitting_size(float(side), float(side))[0] for side in range(1, 513)})
    step = found[1] - found[0]
    sides = Sides(step, found[0] % step, found[0] // step)
    assert found == [step * n + sides.offset for n in range(sides.lowest, sides.lowest + len(found))], found
    return sides


def exportable(network: nn.Module) -> nn.Module:
    """Return a copy whose adaptive pooling is made of matrix products (see `MeanPool`)."""
    copied = copy.deepcopy(network)
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                parts: Any = child.output_size if isinstance(child.output_size, tuple) else (child.output_size,) * 2
                if None not in parts:
                    setattr(module, name, MeanPool(parts))
    return copied


def save_graph(model: Any, about: Mapping[str, Any], path: Path) -> None:
    """Write an ONNX model as a file; `about` goes into its metadata_props, each value as JSON.

    Raises:
        WriteError: when the file cannot be written.
    """
    import onnx

    # The exporter records the source line of each node, with paths of this machine.
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.helper.set_model_props(model, {key: json_text(value) for key, value in about.items()})
    with writing(path):
        onnx.save(model, path)


class _Coarse(nn.Module):
    """A segmentation network whose scores stay small."""

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b ids h w"]:
        """Return the scores before they are enlarged."""
        return self.network.coarse_scores(images)


def export_graph(network: Segmenter, ids: int, path: Path) -> GraphAbout:
    """Write the graph that the engines compute (see `graphs`) and return its description.

    Raises:
        ValueError: when a package is missing, or PyTorch's exporter cannot write the network.
    """
    require_exporter("--engine")
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > MAX_GRAPH_BYTES:
        raise ValueError(
            f"the weights take {size / 1e9:.1f} GB, but an ONNX file holds at most 2 GB; use --engine torch"
        )
    sides = probe_sides(network)
    cells, more = _cells(network, sides)
    about = GraphAbout(
        ids=ids, step=sides.step, offset=sides.offset, lowest=sides.lowest, cells=cells, more=more,
        cornered=network.cornered, shift=network.shift,
    )  # fmt: skip
    copied: Any = exportable(network.cpu().float())
    example = torch.rand(2, 3, *(about.fitting(cells * sides.step) for cells in (10, 13)))
    most = MAX_EXPORTED_SIDE // sides.step
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=4096)}
    for axis, name in ((2, "rows"), (3, "columns")):
        free[axis] = sides.step * torch.export.Dim(name, min=sides.lowest, max=most) + sides.offset
    try:
        program: Any = torch.onnx.export(
            _Coarse(copied).eval(), (example,), dynamo=True, verbose=False, dynamic_shapes=(free,),
            input_names=["images"], output_names=["scores"],
        )  # fmt: skip
    except RuntimeError as error:  # the base class of all of the exporter's errors
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"PyTorch's exporter cannot write this network ({reason}); use --engine torch") from error
    model = program.model_proto
    add_passes(model, ids)
    save_graph(model, {}, path)
    return about


@torch.inference_mode()
def _cells(network: Segmenter, sides: Sides) -> tuple[int, int]:
    """Return how many cells of scores a side of `step * n + offset` pixels has: the factor of n, and what is added.

    Raises:
        ValueError: when their number does not follow such a rule.
    """
    counts = [sides.lowest + more for more in (0, 1, 3, 6)]
    device = next(network.parameters()).device
    found: list[int] = []
    for pair in (counts[:2], counts[2:]):
        image = torch.zeros(1, 3, *(n * sides.step + sides.offset for n in pair), device=device)
        found += network.coarse_scores(image).shape[2:]
    factor = found[1] - found[0]
    more = found[0] - factor * sides.lowest
    if found != [factor * n + more for n in counts]:
        raise ValueError(f"{counts} steps give {found} cells of scores, expected a number per step; use --engine torch")
    return factor, more


@torch.inference_mode()
def graph_difference(graph: Graph, network: Segmenter) -> float:
    """Return the largest difference between a graph's results and PyTorch's on pictures of many sizes: of a score, as a
    share of the largest score, or of a probability."""
    generator, worst = np.random.default_rng(1), 0.0
    device = next(network.parameters()).device
    for number, size in enumerate(CHECKED_PICTURES):
        picture = generator.integers(0, 256, (*size, 3), np.uint8)
        scale, mirror = (1.25, 1.0, 0.75)[number % 3], number % 4 != 3
        given = graph_inputs(graph.about, picture, scale, mirror)
        pixels = torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float() / 255
        fitting = network.fitting_size(size[0] * scale, size[1] * scale)
        upright = resized(pixels, fitting, antialias=scale < 1)
        scores = network.coarse_scores(torch.cat([upright, upright.flip(-1)][: 1 + mirror])).cpu().numpy()
        shares = (1 + mirror) * probabilities(network, pixels, (scale,), mirror)[0].cpu().numpy()
        for output, expected, unit in (("scores", scores, np.abs(scores).max()), ("shares", shares, 1.0)):
            worst = max(worst, float(np.abs(graph.run(output, given) - expected).max() / unit))
    return worst
