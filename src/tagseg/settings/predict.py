"""What `tagseg predict` can be told; docstrings under the fields are the command line's help."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

Precision = Literal["fp32", "bf16"]
Engine = Literal["local", "ray"]
Format = Literal["png", "parquet"]


def _numbers(_: Any, tokens: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(number) for token in tokens for number in token.value.split(","))


@dataclass(frozen=True)
class PredictOptions:
    """How images are predicted and what is written."""

    overlays: Annotated[bool, Parameter(negative=())] = False
    """Also write NAME.overlay.jpg, the image with its mask laid over."""

    probabilities: Annotated[bool, Parameter(negative=())] = False
    """Also write NAME.probabilities.npy, the network's class probabilities: float16, ids x height x width, at the
    resolution of the prediction (a quarter of it where an image is predicted in windows)."""

    crf: Annotated[bool, Parameter(negative=())] = False
    """Move the masks' borders to the edges of the image with the dense CRF (at up to 640 pixels)."""

    scales: Annotated[tuple[float, ...] | None, Parameter(converter=_numbers, n_tokens=1)] = None
    """Image scales whose probabilities are averaged, with commas between: 0.75,1,1.25. By default the network's own."""

    flip: bool | None = None
    """Also average over the mirrored image, or do not. By default as the network's own settings say."""

    max_side: int | None = None
    """Larger images are reduced to this long side in pixels before they are predicted (0: never). By default the
    network's own. Masks have the image's size all the same."""

    window: int | None = None
    """Where the long side that is predicted exceeds this, the image is predicted in overlapping windows of this side in
    pixels, so that memory stays bounded. By default the long side that the network learned from."""

    batch: int = 0
    """Images of one size, or windows of an image, that go through the network together (0: 8 on a GPU, 1 on a CPU)."""

    precision: Precision = "fp32"
    """Number format of the network's forward pass; bf16 is faster on GPUs, and on CPUs that compute in it."""

    device: str = "auto"
    """Where to compute: auto, cpu, cuda, mps."""

    max_megapixels: float = 120.0
    """Larger images are skipped."""

    engine: Engine = "local"
    """What does the work: local, this process, best on a CPU or one GPU; or ray (needs tagseg[ray]), for several GPUs
    or machines, to the same bytes: the cluster that RAY_ADDRESS names, else one that is started on this machine. Every
    machine must see RUN and IMAGES under the same names."""

    actors: int = 0
    """With --engine ray: processes that hold the network (0: one a GPU, or as many as keep the cores busy)."""

    format: Format = "png"
    """How masks are written: png, a file an image; or parquet, masks-NUMBER.parquet with a row an image (needs
    tagseg[ray])."""

    rows: int = 1000
    """With --format parquet: images in a file. A file is there whole or not at all, so that --resume begins behind the
    last one."""

    resume: Annotated[bool, Parameter(negative=())] = False
    """Go on with an interrupted prediction: images whose mask and line in predictions.jsonl are there are skipped."""

    force: Annotated[bool, Parameter(negative=())] = False
    """Overwrite masks that exist."""

    def __post_init__(self) -> None:
        scales = self.scales
        _check(scales is None or (len(scales) > 0 and all(0 < scale < math.inf for scale in scales)), "scales", scales,
               "numbers above 0 with commas between, such as 0.75,1,1.25")  # fmt: skip
        _check(self.max_side is None or self.max_side == 0 or self.max_side >= 64, "max-side", self.max_side,
               "at least 64 pixels, or 0 for images as large as they are")  # fmt: skip
        _check(self.window is None or self.window >= 64, "window", self.window, "at least 64 pixels")
        _check(self.batch >= 0, "batch", self.batch, "at least 1 image, or 0 to choose by device")
        _check(self.precision in get_args(Precision), "precision", self.precision, "fp32 or bf16")
        _check(0 < self.max_megapixels < math.inf, "max-megapixels", self.max_megapixels, "more than 0")
        _check(self.engine in get_args(Engine), "engine", self.engine, "local or ray")
        _check(self.actors >= 0, "actors", self.actors, "at least 1, or 0 to choose by what is there")
        _check(self.engine == "ray" or not self.actors, "actors", self.actors, "it with --engine ray alone")
        _check(self.format in get_args(Format), "format", self.format, "png or parquet")
        _check(self.rows >= 1, "rows", self.rows, "at least 1 image")
        _check(self.format == "png" or not (self.overlays or self.probabilities), "format", self.format,
               "png with --overlays or --probabilities, which are files of their own")  # fmt: skip
        _check(not (self.resume and self.force), "resume", self.resume, "it without --force, which starts over")


def _check(holds: bool, flag: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"--{flag}: got {value!r}, expected {expected}")
