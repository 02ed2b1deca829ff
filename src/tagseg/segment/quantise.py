"""Quantisation of an ONNX graph: convolutions in 8-bit integers, with ranges measured on photographs."""

import importlib.util
import logging
import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tagseg.segment.graphs import GraphInputs

EXACT = 0.1
"""Share of the convolutions, from the first, that stay in fp32."""

LEAST_CALIBRATION_IMAGES = 8
"""Fewer do not show the ranges: single photographs have values that most do not have, and lack others."""


def write_int8(source: Path, target: Path, inputs: Iterable[GraphInputs]) -> None:
    """Write a graph whose convolutions compute in int8.

    Weights have one scale per output channel. The first tenth of the convolutions and the last, which gives the scores,
    stay in fp32. Errors of the first grow through the whole network: with MobileNetV2 they are worth 5.5 mIoU
    (docs/engines.md). Weights use 7 bits, since CPUs without VNNI add two products in 16 bits, which 8 bits overflow
    silently.

    Args:
        source: an ONNX graph in float32.
        target: the file to write.
        inputs: what the graph is given for photographs like those that it will see; ranges are measured on them.

    Raises:
        ValueError: when ONNX Runtime or onnx is not installed, or cannot quantise the graph.
    """
    missing = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"int8: requires {' and '.join(missing)} to quantise the network; install with pip install 'tagseg[onnx]'"
        )
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[GraphInputs] = iter(inputs)

        def get_next(self) -> GraphInputs | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared), str(target), Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"],
                nodes_to_exclude=_kept_exact(prepared), per_channel=True, reduce_range=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        except Exception as error:  # of several libraries, with no common base class
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise ValueError(f"int8: ONNX Runtime cannot quantise the network ({reason}); use fp32") from error


def _kept_exact(file: Path) -> list[str]:
    """Return the names of the convolutions that are not quantised."""
    import onnx

    names = [node.name for node in onnx.load(file).graph.node if node.op_type == "Conv"]
    return [*names[: math.ceil(EXACT * len(names))], *names[-1:]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide advice that the quantiser logs about steps that are done here."""
    root: Any = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
