"""Options of `tagseg predict`."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Unit
from cyclopts import Parameter

from tagseg.settings.bounds import OrZero, Scales, check_fields

Precision = Literal["fp32", "bf16", "int8"]
EngineName = Literal["torch", "onnxruntime", "openvino"]
Engine = Literal["auto", "torch", "onnxruntime", "openvino", "local", "ray"]
Agreement = Annotated[float | None, Ge(0), Le(1)]
RunsOn = Literal["local", "ray"]
Format = Literal["png", "parquet"]


def _numbers(_: Any, tokens: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(number) for token in tokens for number in token.value.split(","))


@dataclass(frozen=True)
class PredictOptions:
    """How images are predicted and what is written."""

    overlays: Annotated[bool, Parameter(negative=())] = False
    """Also write NAME.overlay.jpg: the image with its mask on top."""

    probabilities: Annotated[bool, Parameter(negative=())] = False
    """Also write NAME.probabilities.npy: the network's class probabilities, float16, ids x height x width, at the
    resolution of the prediction (one quarter of it for an image that is predicted in windows)."""

    crf: Annotated[bool, Parameter(negative=())] = False
    """Align the masks with the edges of the image by the dense CRF (at up to 640 pixels)."""

    scales: Annotated[Scales | None, Parameter(converter=_numbers, n_tokens=1, metavar="NUMBERS")] = None
    """Image scales whose probabilities are averaged, separated by commas: 0.75,1,1.25. By default the network's own."""

    flip: bool | None = None
    """Also average over the mirrored image. By default as in the network's own settings."""

    max_side: Annotated[int | None, Ge(64), Unit("pixels"), OrZero()] = None
    """Long side in pixels to which larger images are reduced before prediction (0: never reduce). Masks have the
    image's own size. By default the network's own."""

    window: Annotated[int | None, Ge(64), Unit("pixels")] = None
    """Side of the window in pixels: an image whose predicted long side is larger is predicted in overlapping windows,
    which bounds the memory. By default the long side at which the network was trained."""

    batch: Annotated[int, Ge(0), Unit("images")] = 0
    """Images of equal size, or windows of one image, per forward pass (0: 8 on a GPU, 1 on a CPU)."""

    precision: Precision = "fp32"
    """Number format of the network's forward pass. bf16 is faster on GPUs and on CPUs that support it. int8 needs no
    special CPU, but tagseg[onnx]: the network is quantised once, on photographs of the first folder that is
    predicted with it, and refused if fewer labels than --agreement stay the same."""

    device: str = "auto"
    """Where to compute: auto, cpu, cuda, mps."""

    max_megapixels: Annotated[float, Gt(0), Unit("megapixels")] = 120.0
    """Larger images are skipped."""

    engine: Engine = "auto"
    """What computes the network on a CPU. auto: the fastest that is installed and agrees with PyTorch on a few of the
    images; torch: PyTorch; onnxruntime, openvino: require tagseg[onnx] or tagseg[openvino]. (local and ray are the
    deprecated values of what is now --on.)"""

    agreement: Agreement = None
    """Least share of pixels that must get PyTorch's label for --engine auto to take an engine, and for int8. By default
    0.999 in fp32, 0.98 in bf16, 0.97 in int8."""

    on: RunsOn = "local"
    """Where the prediction runs; the masks are byte-identical. local: this process, best on a CPU or one GPU; ray
    (requires tagseg[ray]): several GPUs or machines, on the cluster that RAY_ADDRESS names or else on one that is
    started on this machine. Every machine must see RUN and IMAGES under the same paths."""

    actors: Annotated[int, Ge(0)] = 0
    """Processes that hold the network; requires --on ray (0: one per GPU, or as many as keep the cores busy)."""

    format: Format = "png"
    """How masks are written. png: one file per image; parquet: masks-NUMBER.parquet with one row per image (requires
    tagseg[ray])."""

    rows: Annotated[int, Ge(1), Unit("images")] = 1000
    """Images per file with --format parquet. Each file is written as a whole, and --resume continues after the last
    one."""

    resume: Annotated[bool, Parameter(negative=())] = False
    """Continue an interrupted prediction: images that have a mask and a line in predictions.jsonl are skipped."""

    force: Annotated[bool, Parameter(negative=())] = False
    """Overwrite existing masks."""

    def __post_init__(self) -> None:
        check_fields(self, "--")
        if self.engine in ("local", "ray"):
            message = f"--engine {self.engine} is deprecated: write --on {self.engine}"
            warnings.warn(message, DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "on", self.engine)
            object.__setattr__(self, "engine", "auto")
        if self.actors and self.on != "ray":
            raise ValueError(f"--actors requires --on ray, got --on {self.on}")
        if self.format != "png" and (self.overlays or self.probabilities):
            raise ValueError(f"--overlays and --probabilities require --format png, got --format {self.format}")
        if self.resume and self.force:
            raise ValueError("--resume continues and --force starts over: give one of them")
