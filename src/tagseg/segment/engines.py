"""Which engine computes a network: PyTorch, ONNX Runtime or OpenVINO. This module imports PyTorch only if it must.

An engine other than PyTorch computes a graph (`graphs`), which is exported once into the folder `engines` beside the
weights, together with what was measured: how many pixels get PyTorch's label, and how fast the engine is. Later
predictions read only these files.
"""

import dataclasses
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args

import msgspec
import numpy as np
from jaxtyping import UInt8

from tagseg.errors import RunError
from tagseg.run.folder import EXPORTED_WEIGHTS, TRAINED_WEIGHTS
from tagseg.segment.about import SegmenterAbout, check_about
from tagseg.segment.graphs import EXTRAS, GraphAbout, engine_version, graph_inputs, installed, open_graph
from tagseg.segment.predictor import Predictor
from tagseg.settings.predict import Agreement, EngineName, Precision
from tagseg.system.files import atomic_path, checksum
from tagseg.system.process import cores, processor
from tagseg.system.records import Amount, Count, Record, Share, read_record, write_record

log = logging.getLogger(__name__)

ENGINES_FOLDER = "engines"
"""The folder beside the weights."""

NOTE_FILE = "engines.json"
GRAPH = "passes.onnx"
INT8_GRAPH = "passes.int8.onnx"

CHECKED_IMAGES = 8
"""Images that engines are compared on."""

CALIBRATION_IMAGES = 32
"""Other images on which the ranges of the values in int8 are measured."""

STEADY: EngineName = "onnxruntime"
"""The engine of computations that are to be repeatable."""

WORTH_AN_EXPORT = 200
"""Images from which on `auto` exports a graph: the export takes about half a minute."""

AGREEMENT: dict[Precision, float] = {"fp32": 0.999, "bf16": 0.98, "int8": 0.97}
"""Least share of pixels with PyTorch's label, unless another is asked for."""

OFFERED: dict[Precision, tuple[EngineName, ...]] = {
    "fp32": ("openvino", "onnxruntime"), "bf16": ("openvino",), "int8": ("onnxruntime",),
}  # fmt: skip
"""The engines besides PyTorch that compute in a precision."""

Pictures = Sequence[UInt8[np.ndarray, "_ _ 3"]]
Thing = TypeVar("Thing")


class EngineCheck(Record, frozen=True, kw_only=True):
    """What was measured for an engine, on a processor and with a number of cores.

    agreement: the share of the pixels that get the label which PyTorch gives in fp32.
    """

    engine: EngineName
    version: str
    precision: Precision
    processor: str
    cores: Count
    images: Count
    agreement: Share
    images_per_s: Amount


class EngineNote(Record, frozen=True, kw_only=True):
    """The exported graph of a network and the checks of its engines. weights: SHA-256 of the file of weights;
    calibrated: photographs on which the graph in int8 was calibrated, 0 while there is none."""

    weights: str
    network: SegmenterAbout
    graph: GraphAbout
    difference: Amount
    calibrated: Count = 0
    checks: tuple[EngineCheck, ...] = ()


@dataclass(frozen=True)
class Asked:
    """Which engine and precision are wanted, on which device, and the least agreement with PyTorch (None: that of the
    precision)."""

    engine: EngineName | str = "auto"
    precision: Precision = "fp32"
    device: str = "auto"
    agreement: Agreement = None
    steady: bool = False
    """Whether auto leaves out what it measures: it takes `STEADY` wherever that agrees with PyTorch. So a computation
    that is repeated on another day has the same result to the last bit."""

    @property
    def least(self) -> float:
        """The least share of pixels with PyTorch's label."""
        return AGREEMENT[self.precision] if self.agreement is None else self.agreement


@dataclass(frozen=True)
class Opened:
    """A predictor, the engine that computes it, and why this one."""

    predictor: Predictor
    engine: EngineName
    why: str


@dataclass(frozen=True)
class _Network:
    """The folder of a network, how PyTorch reads it, and how a predictor is set up."""

    folder: Path
    read: Callable[[], Predictor]
    configure: Callable[[Predictor], Predictor]


def open_engine(
    folder: Path,
    asked: Asked,
    read: Callable[[], Predictor],
    configure: Callable[[Predictor], Predictor],
    pictures: Callable[[int], Pictures] = lambda _: (),
    images: int = 0,
) -> Opened:
    """Return a predictor that computes as asked.

    Args:
        folder: where the weights are.
        asked: engine, precision, device and agreement.
        read: reads the network into PyTorch.
        configure: sets up a predictor.
        pictures: returns up to so many pictures, to check engines with and to calibrate int8 on.
        images: how many images are to be predicted.

    Raises:
        RunError: if the engine asked for is not installed, cannot compute the network, or lacks the precision; if the
            network in int8 agrees too little with PyTorch, or there are too few pictures to calibrate it.
    """
    if asked.precision == "int8" and asked.engine == "auto":
        asked = dataclasses.replace(asked, engine="onnxruntime")  # the only one that computes in it
    network = _Network(folder, read, configure)
    if asked.engine == "torch":
        if asked.precision == "int8":
            raise RunError("--precision int8: PyTorch does not compute in it; use --engine onnxruntime")
        return _torch(network, asked, "as asked")
    if asked.engine == "auto":
        return _fastest(network, asked, pictures, images)
    (engine,) = (name for name in get_args(EngineName) if name == asked.engine)
    _require(engine, asked)
    note = _prepared(network, read_note(folder) or _exported(folder, read), engine, asked, pictures)
    check = _known(note, engine, asked.precision)
    if check is not None and check.agreement < asked.least and asked.precision == "int8":
        raise RunError(
            f"--precision int8: {100 * check.agreement:.2f} % of the pixels of {check.images} images get PyTorch's "
            f"label, expected at least {100 * asked.least:g} %; use --precision fp32, or accept the loss with "
            f"--agreement {math.floor(100 * check.agreement) / 100:g}"
        )
    if check is not None and check.agreement < asked.least:
        log.warning(
            "%s in %s gives %.2f %% of the pixels PyTorch's label, expected at least %.2f %%; --engine auto would not "
            "take it", engine, asked.precision, 100 * check.agreement, 100 * asked.least,
        )  # fmt: skip
    return Opened(
        network.configure(graph_predictor(network.folder, note, engine, asked.precision)),
        engine,
        _reason(check, "as asked"),
    )


def _prepared(
    network: _Network, note: EngineNote, engine: EngineName, asked: Asked, pictures: Callable[[int], Pictures]
) -> EngineNote:
    """Return the note once the graph in int8, if that is asked for, is there, and the engine was checked on pictures if
    there are any."""
    quantise = asked.precision == "int8" and not note.calibrated
    if not quantise and _known(note, engine, asked.precision) is not None:
        return note
    given = pictures(CHECKED_IMAGES + CALIBRATION_IMAGES * (asked.precision == "int8"))
    checking = spread(given, CHECKED_IMAGES)
    if quantise:
        note = _quantised(network, note, given, checking)
    return _checked(network, note, [engine], asked, checking) if checking else note


def read_note(folder: Path) -> EngineNote | None:
    """Return the note beside a network's weights; None if there is none, or it is of other weights."""
    home = folder / ENGINES_FOLDER
    if not (home / NOTE_FILE).is_file() or not (home / GRAPH).is_file():
        return None
    note = read_record(home / NOTE_FILE, EngineNote, "delete its folder, and it is made again")
    if not (home / INT8_GRAPH).is_file():
        note = msgspec.structs.replace(note, calibrated=0)
    return note if note.weights == checksum(weights_file(folder)) else None


def weights_file(folder: Path) -> Path:
    """Return the file of a network's weights."""
    trained = folder / TRAINED_WEIGHTS
    return trained if trained.is_file() else folder / EXPORTED_WEIGHTS


def _torch(network: _Network, asked: Asked, why: str) -> Opened:
    return Opened(network.configure(network.read()), "torch", why)


def _require(engine: EngineName, asked: Asked) -> None:
    if not installed(engine):
        raise RunError(f"--engine {engine} is not installed: pip install 'tagseg[{EXTRAS[engine]}]'")
    if asked.device not in ("auto", "cpu"):
        raise RunError(
            f"--engine {engine} computes on the CPU; leave out --device {asked.device}, or use --engine torch"
        )
    if engine not in OFFERED[asked.precision]:
        able = [precision for precision, engines in OFFERED.items() if engine in engines]
        others = [name for name in (*OFFERED[asked.precision], "torch") if (name, asked.precision) != ("torch", "int8")]
        raise RunError(
            f"--engine {engine} computes in {' or '.join(able)}, got --precision {asked.precision}; use "
            f"{' or '.join(others)}"
        )


def _fastest(network: _Network, asked: Asked, pictures: Callable[[int], Pictures], images: int) -> Opened:
    """Return the fastest engine that is installed and agrees with PyTorch."""
    if asked.device not in ("auto", "cpu") or (asked.device == "auto" and may_have_gpu()):
        return _torch(network, asked, f"computes on the device ({asked.device})")
    offered = (STEADY,) if asked.steady else OFFERED[asked.precision]
    engines = [engine for engine in offered if installed(engine)]
    if not engines:
        extra = EXTRAS[offered[0]]
        return _torch(network, asked, f"others may be several times as fast: pip install 'tagseg[{extra}]'")
    note = read_note(network.folder)
    if note is None or any(_known(note, engine, asked.precision) is None for engine in engines):
        if images < WORTH_AN_EXPORT or not (given := pictures(CHECKED_IMAGES)):
            return _torch(
                network, asked,
                f"preparing {' or '.join(engines)} takes half a minute, which {images} images do not repay; --engine "
                f"{engines[0]} prepares it",
            )  # fmt: skip
        try:
            note = _checked(network, note or _exported(network.folder, network.read), engines, asked, given)
        except (RunError, ValueError) as error:
            return _torch(network, asked, f"no other engine computes the network: {error}")
    checks = [check for engine in (*engines, "torch") if (check := _known(note, engine, asked.precision))]
    passed = [check for check in checks if check.agreement >= asked.least]
    rivals = [check for check in passed if check.engine in engines] if asked.steady else passed
    best = max(rivals, key=lambda check: check.images_per_s, default=None)
    if best is None or best.engine == "torch":
        found = ", ".join(f"{check.engine} {_reason(check, '')}" for check in checks)
        return _torch(network, asked, f"no engine is faster and agrees with it: {found}")
    slowest = next((check for check in checks if check.engine == "torch"), None)
    gain = f", {best.images_per_s / slowest.images_per_s:.1f} times as fast as PyTorch" if slowest else ""
    return Opened(
        network.configure(graph_predictor(network.folder, note, best.engine, asked.precision)),
        best.engine,
        _reason(best, "" if asked.steady else "the fastest") + gain,
    )


def _reason(check: EngineCheck | None, why: str) -> str:
    if check is None:
        return why
    agreed = f"{100 * check.agreement:.2f} % of the pixels of {check.images} images have PyTorch's label"
    return f"{why}; {agreed}" if why else agreed


def may_have_gpu() -> bool:
    """Tell whether there may be a GPU that PyTorch computes on; only PyTorch knows for sure."""
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg") or sys.platform == "darwin"


def write_note(folder: Path, note: EngineNote) -> None:
    """Write the note beside a network's weights."""
    write_record(folder / ENGINES_FOLDER / NOTE_FILE, note)


def _exported(folder: Path, read: Callable[[], Predictor]) -> EngineNote:
    """Export the network's graph, compare it with PyTorch over many sizes, and write both beside the weights."""
    from tagseg.networks.segmenters import Segmenter
    from tagseg.segment.graph_export import SCORE_TOLERANCE, export_graph, graph_difference
    from tagseg.training.checkpoint import read_about

    predictor = read()
    module = predictor.network
    assert isinstance(module, Segmenter)
    engine = next((name for name in EXTRAS if installed(name)), None)
    assert engine is not None, "an engine is installed"
    home = folder / ENGINES_FOLDER
    try:
        with atomic_path(home / GRAPH) as temporary:
            about = export_graph(module, len(predictor.classes), temporary)
            difference = graph_difference(open_graph(engine, temporary, about, "fp32"), module)
            if not difference <= SCORE_TOLERANCE:
                raise ValueError(
                    f"the exported graph's results differ from PyTorch's by {difference:.2g} of the largest, expected "
                    f"at most {SCORE_TOLERANCE}"
                )
    except ValueError as error:
        raise RunError(f"--engine: {error}") from error
    file = weights_file(folder)
    told = check_about(read_about(file), file)
    note = EngineNote(weights=checksum(file), network=told, graph=about, difference=difference)
    write_note(folder, note)
    return note


def _quantised(network: _Network, note: EngineNote, given: Pictures, checking: Pictures) -> EngineNote:
    """Write the graph in int8, calibrated on the given pictures but those that check it; return the new note."""
    from tagseg.segment.quantise import LEAST_CALIBRATION_IMAGES, write_int8

    held = set(map(id, checking))
    pictures = [picture for picture in given if id(picture) not in held]
    if len(pictures) < LEAST_CALIBRATION_IMAGES:
        raise RunError(
            f"--precision int8: quantising the network needs at least {LEAST_CALIBRATION_IMAGES + CHECKED_IMAGES} "
            f"photographs, {LEAST_CALIBRATION_IMAGES} to measure ranges and {CHECKED_IMAGES} to check it, found "
            f"{len(given)}; predict more photographs in int8 first, or use --precision fp32"
        )
    home = network.folder / ENGINES_FOLDER
    mirror = note.network.predict_flip
    try:
        with atomic_path(home / INT8_GRAPH) as temporary:
            write_int8(home / GRAPH, temporary, (graph_inputs(note.graph, one, 1.0, mirror) for one in pictures))
    except ValueError as error:
        raise RunError(f"--precision {error}") from error
    note = msgspec.structs.replace(note, calibrated=len(pictures))
    write_note(network.folder, note)
    return note


def spread(things: Sequence[Thing], count: int) -> list[Thing]:
    """Return up to `count` things from all over a sequence."""
    return list(things[:: max(len(things) // count, 1)])[:count]


def _checked(
    network: _Network, note: EngineNote, engines: Sequence[EngineName], asked: Asked, pictures: Pictures
) -> EngineNote:
    """Return the note with checks of engines, and of PyTorch itself, on pictures; it is written, too."""
    reference = dataclasses.replace(network.configure(network.read()), precision="fp32")
    labels, seconds = _labels(reference, pictures)
    found = []
    for engine in engines if asked.precision == "int8" else ("torch", *engines):
        if engine == "torch":
            rival, took = labels, seconds
            if asked.precision != "fp32":
                rival, took = _labels(dataclasses.replace(reference, precision=asked.precision), pictures)
        else:
            rival, took = _labels(
                network.configure(graph_predictor(network.folder, note, engine, asked.precision)), pictures
            )
        same = sum(int((one == other).sum()) for one, other in zip(labels, rival, strict=True))
        found.append(
            EngineCheck(
                engine=engine,
                version=engine_version(engine),
                precision=asked.precision,
                processor=processor(),
                cores=cores(),
                images=len(pictures),
                agreement=same / sum(one.size for one in labels),
                images_per_s=round(len(pictures) / took, 3),
            )
        )
    replaced = {_key(check) for check in found}
    kept = tuple(check for check in note.checks if _key(check) not in replaced)
    note = msgspec.structs.replace(note, checks=(*kept, *found))
    write_note(network.folder, note)
    return note


def _labels(predictor: Predictor, pictures: Pictures) -> tuple[list[UInt8[np.ndarray, "_ _"]], float]:
    """Return the labels of pictures and the seconds that they took; a first round warms up."""

    def label(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "_ _"]:
        labels: UInt8[np.ndarray, "_ _"] = predictor.look([picture])[0].argmax(0).astype(np.uint8)
        return labels

    if predictor.is_graph:
        predictor = dataclasses.replace(predictor, threads=1)
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(label, pictures))
            started = time.perf_counter()
            return list(pool.map(label, pictures)), time.perf_counter() - started
    for picture in pictures[:2]:
        label(picture)
    started = time.perf_counter()
    return [label(picture) for picture in pictures], time.perf_counter() - started


def _key(check: EngineCheck) -> tuple[str, str, str, str, int]:
    return check.engine, check.version, check.precision, check.processor, check.cores


def _known(note: EngineNote, engine: EngineName, precision: Precision) -> EngineCheck | None:
    """Return what was measured for this version of an engine on this processor."""
    wanted = engine, engine_version(engine), precision, processor(), cores()
    return next((check for check in note.checks if _key(check) == wanted), None)


def graph_predictor(folder: Path, note: EngineNote, engine: EngineName, precision: Precision) -> Predictor:
    """Return a predictor that an engine computes, as the network was saved.

    Raises:
        RunError: if the engine cannot open the graph, or the CPU lacks the precision.
    """
    told = note.network
    file = folder / ENGINES_FOLDER / (INT8_GRAPH if precision == "int8" else GRAPH)
    graph = open_graph(engine, file, note.graph, precision)
    return Predictor(
        graph, told.classes, told.predict_scales, told.predict_flip, told.max_side, told.max_side, precision=precision
    )
