"""A segmentation network as a graph for ONNX Runtime or OpenVINO. This module imports no PyTorch.

A graph takes RGB in 0..1 at a size that fits the network, normalises it, and returns scores before they are enlarged.
Resizing, mirroring and the softmax are ours (`views`): graphs that resize by themselves are wrong at sizes other than
that of the example they were exported with (docs/engines.md).
"""

import importlib.util
import threading
from abc import ABC, abstractmethod
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from tagseg.errors import RunError
from tagseg.segment.views import add_shares, scaled_views
from tagseg.settings.predict import EngineName, Precision
from tagseg.system.process import cores
from tagseg.system.records import Count, Positive, Record

EXTRAS: dict[EngineName, str] = {"onnxruntime": "onnx", "openvino": "openvino"}
"""The extra of tagseg that installs an engine."""


class GraphAbout(Record, frozen=True, kw_only=True):
    """How pictures are given to a graph and what its scores mean.

    ids: classes and background. step, offset, lowest: the sides that fit it are `step * n + offset` pixels for every
    n >= lowest. cornered: whether its scores lie with their corner cells on the corner pixels.
    """

    ids: Positive
    step: Positive
    offset: Count
    lowest: Positive
    cornered: bool

    def fitting(self, side: int | float) -> int:
        """Return the side nearest to `side` pixels that the network takes."""
        return max(round((side - self.offset) / self.step), self.lowest) * self.step + self.offset


class Graph(ABC):
    """A network of another engine. Threads may use it at the same time; each computes by itself."""

    def __init__(self, about: GraphAbout) -> None:
        self.about = about

    @abstractmethod
    def scores(self, images: Float32[np.ndarray, "b 3 H W"]) -> Float32[np.ndarray, "b ids h w"]:
        """Return the scores of images (RGB in 0..1) whose sides fit the network."""

    def shares(self, picture: UInt8[np.ndarray, "h w 3"], scale: float, mirror: bool) -> Float32[np.ndarray, "ids h w"]:
        """Return the class probabilities of a picture at a scale, summed over it and (`mirror`) its mirror image."""
        height, width = picture.shape[:2]
        size = self.about.fitting(height * scale), self.about.fitting(width * scale)
        total = np.zeros((self.about.ids, height, width), np.float32)
        views = scaled_views(picture, size, scale < 1, mirror)
        add_shares(self.scores(views), size, self.about.cornered, total)
        return total


class _OnnxRuntime(Graph):
    def __init__(self, file: Path, about: GraphAbout) -> None:
        import onnxruntime

        super().__init__(about)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        # The thread that calls computes: several images at a time are faster than several threads for one.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def scores(self, images: Float32[np.ndarray, "b 3 H W"]) -> Float32[np.ndarray, "b ids h w"]:
        found: Float32[np.ndarray, "b ids h w"] = self.session.run(["scores"], {"images": images})[0]
        return found


class _OpenVino(Graph):
    def __init__(self, file: Path, about: GraphAbout, precision: Precision) -> None:
        import openvino

        super().__init__(about)
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RunError("--precision bf16: this CPU does not compute in bf16 (no AMX, no AVX512_BF16); use fp32")
        asked = {
            # Asked for in any case: OpenVINO computes an fp32 network in bf16 where the CPU has AMX.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "NUM_STREAMS": cores(),
            "INFERENCE_NUM_THREADS": cores(),
            "ENABLE_CPU_PINNING": False,
        }
        self.model = core.compile_model(core.read_model(file), "CPU", asked)
        self.local = threading.local()

    def scores(self, images: Float32[np.ndarray, "b 3 H W"]) -> Float32[np.ndarray, "b ids h w"]:
        if not hasattr(self.local, "request"):
            self.local.request = self.model.create_infer_request()
        request = self.local.request
        request.infer({"images": images}, share_inputs=True)
        # Copied: the next call writes to the same memory.
        found: Float32[np.ndarray, "b ids h w"] = np.array(request.get_output_tensor(0).data, np.float32)
        return found


def open_graph(engine: EngineName, file: Path, about: GraphAbout, precision: Precision) -> Graph:
    """Open a graph in an engine.

    Raises:
        RunError: if the engine cannot open it, or the CPU lacks the precision.
    """
    try:
        return _OnnxRuntime(file, about) if engine == "onnxruntime" else _OpenVino(file, about, precision)
    except RunError:
        raise
    except Exception as error:  # the engines' own errors have no common base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise RunError(f"--engine {engine}: cannot open {file} ({reason})") from error


def installed(engine: str) -> bool:
    """Tell whether a package is installed."""
    return importlib.util.find_spec(engine) is not None


def engine_version(engine: EngineName) -> str:
    """Return the version of an installed engine."""
    return version(engine)
