"""A segmentation network as a graph for ONNX Runtime or OpenVINO. This module imports no PyTorch.

A graph takes a picture and the matrices that resize it and its scores (`graph_passes`, `views`), and returns the class
probabilities of the picture and its mirror image.
"""

import importlib.util
import os
import weakref
from abc import ABC, abstractmethod
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from tagseg.errors import RunError
from tagseg.segment.views import returning, scaling
from tagseg.settings.predict import EngineName, Precision
from tagseg.system.process import cores
from tagseg.system.records import Count, Positive, Record

EXTRAS: dict[EngineName, str] = {"onnxruntime": "onnx", "openvino": "openvino"}
"""The extra of tagseg that installs an engine."""


class GraphAbout(Record, frozen=True, kw_only=True):
    """How pictures are given to a graph and what its scores mean.

    ids: classes and background. step, offset, lowest: the sides that fit it are `step * n + offset` pixels for every
    n >= lowest. cells, more: such a side has `cells * n + more` cells of scores. cornered: whether its scores lie with
    their corner cells on the corner pixels. shift: by what part of a cell they lie further to the right and down.
    """

    ids: Positive
    step: Positive
    offset: Count
    lowest: Positive
    cells: Positive
    more: Count
    cornered: bool
    shift: float = 0.0

    def fitting(self, side: int | float) -> int:
        """Return the side nearest to `side` pixels that the network takes."""
        return max(round((side - self.offset) / self.step), self.lowest) * self.step + self.offset


GraphInputs = dict[str, Shaped[np.ndarray, "..."]]
Floats = Float32[np.ndarray, "..."]


class Graph(ABC):
    """A network of another engine. Threads may use it at the same time; each computes by itself."""

    def __init__(self, about: GraphAbout) -> None:
        self.about = about

    @abstractmethod
    def run(self, output: str, inputs: GraphInputs) -> Floats:
        """Return an output of the graph."""

    def shares(self, picture: UInt8[np.ndarray, "h w 3"], scale: float, mirror: bool) -> Float32[np.ndarray, "ids h w"]:
        """Return the class probabilities of a picture at a scale, summed over it and (`mirror`) its mirror image."""
        return self.run("shares", graph_inputs(self.about, picture, scale, mirror))


def graph_inputs(about: GraphAbout, picture: UInt8[np.ndarray, "h w 3"], scale: float, mirror: bool) -> GraphInputs:
    """Return what a graph is given for a picture at a scale, and (`mirror`) its mirror image."""
    there, back = [], []
    for side in picture.shape[:2]:
        fitting = about.fitting(side * scale)
        cells = (fitting - about.offset) // about.step * about.cells + about.more
        there.append(scaling(side, fitting, scale < 1))
        back.append(returning(cells, fitting, side, about.cornered, about.shift))
    columns = back[1].T
    views = np.stack([columns, columns[:, ::-1]][: 1 + mirror])[:, None]
    return {
        "picture": np.ascontiguousarray(picture),
        "rows": there[0],
        "columns": np.ascontiguousarray(there[1].T),
        "rows_back": back[0],
        "columns_back": views,
    }


class _OnnxRuntime(Graph):
    def __init__(self, file: Path, about: GraphAbout) -> None:
        import onnxruntime

        super().__init__(about)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        # The thread that calls computes: several images at a time are faster than several threads for one.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(self, output: str, inputs: GraphInputs) -> Floats:
        found: Floats = self.session.run([output], inputs)[0]
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
        self.idle: list[Any] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=partial(_never_delete, weakref.ref(self)))

    def run(self, output: str, inputs: GraphInputs) -> Floats:
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.model.create_infer_request()
        # Computed by the engine's own threads, from copies: these never wait for Python's lock, as a thread may that
        # computes from memory shared with NumPy.
        request.start_async(inputs, share_inputs=False)
        request.wait()
        # Copied: the next call writes to the same memory.
        found: Floats = np.array(request.get_tensor(output).data, np.float32)
        self.idle.append(request)
        return found


def _never_delete(graph: "weakref.ref[_OpenVino]") -> None:
    """Keep a graph until this process ends, which must be a child made by fork: OpenVINO waits there for its threads,
    which only the parent has, or ends the process with a segmentation fault."""
    import ctypes

    if (kept := graph()) is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


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
