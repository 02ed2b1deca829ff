"""The passes of a picture as one ONNX graph: resizing, mirroring, normalisation, the network, softmax and sum.

Resizing is a product with matrices that are given to the graph (see `views`), so it is right at every size: the
resizing that PyTorch's exporter writes is not (docs/engines.md).
"""

from typing import Any

import numpy as np
from jaxtyping import Shaped


def add_passes(model: Any, ids: int) -> None:
    """Extend a graph that maps `images` (b 3 H W, RGB in 0..1) to `scores` (b ids y x), in place.

    Its inputs become `picture` (h w 3, RGB bytes), `rows` (H h) and `columns` (w W), which resize the picture, and
    `rows_back` (h y) and `columns_back` (v 1 x w), which resize the scores; v is 1, or 2 for the picture and its mirror
    image, whose matrix gives its columns the other way round. Its outputs are `shares` (ids h w), the sum of the views'
    probabilities, and the `scores` of the views.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    graph = model.graph
    constants: dict[str, Shaped[np.ndarray, ...]] = {
        "unit": np.array(1 / 255, np.float32),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "last": np.array([-1], np.int64),
        "before_first": np.array([np.iinfo(np.int64).min], np.int64),
    }
    node = helper.make_node
    before = [
        node("Cast", ["picture"], ["floats"], to=TensorProto.FLOAT),
        node("Mul", ["floats", "unit"], ["colours"]),
        node("Transpose", ["colours"], ["planes"], perm=[2, 0, 1]),
        node("MatMul", ["rows", "planes"], ["resized_rows"]),
        node("MatMul", ["resized_rows", "columns"], ["upright"]),
        node("Slice", ["upright", "last", "before_first", "two", "last"], ["mirrored"]),
        node("Unsqueeze", ["upright", "zero"], ["upright_view"]),
        node("Unsqueeze", ["mirrored", "zero"], ["mirrored_view"]),
        node("Concat", ["upright_view", "mirrored_view"], ["both_views"], axis=0),
        node("Shape", ["columns_back"], ["views"], start=0, end=1),
        node("Slice", ["both_views", "zero", "views", "zero"], ["images"]),
    ]
    after = [
        node("MatMul", ["scores", "columns_back"], ["wide_scores"]),
        node("MatMul", ["rows_back", "wide_scores"], ["large_scores"]),
        # Softmax over an axis that is not the last is a hundred times as slow in ONNX Runtime.
        node("ReduceMax", ["large_scores", "one"], ["highest"], keepdims=1),
        node("Sub", ["large_scores", "highest"], ["lowered"]),
        node("Exp", ["lowered"], ["odds"]),
        node("ReduceSum", ["odds", "one"], ["all_odds"], keepdims=1),
        node("Div", ["odds", "all_odds"], ["view_shares"]),
        node("ReduceSum", ["view_shares", "zero"], ["shares"], keepdims=0),
    ]
    inputs: dict[str, tuple[int, list[str | int]]] = {
        "picture": (TensorProto.UINT8, ["h", "w", 3]),
        "rows": (TensorProto.FLOAT, ["H", "h"]),
        "columns": (TensorProto.FLOAT, ["w", "W"]),
        "rows_back": (TensorProto.FLOAT, ["h", "y"]),
        "columns_back": (TensorProto.FLOAT, ["v", 1, "x", "w"]),
    }
    outputs: dict[str, tuple[int, list[str | int]]] = {
        "shares": (TensorProto.FLOAT, [ids, "h", "w"]),
        "scores": (TensorProto.FLOAT, ["v", ids, "y", "x"]),
    }
    taken = {name for inner in graph.node for name in inner.output} | {tensor.name for tensor in graph.initializer}
    ours = {name for step in (*before, *after) for name in step.output} | constants.keys()
    assert not ours & taken - {"images", "scores"}, f"names of the exporter's: {ours & taken}"
    network = list(graph.node)
    graph.ClearField("node")
    graph.node.extend([*before, *network, *after])
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    for field, values in (("input", inputs), ("output", outputs)):
        graph.ClearField(field)
        getattr(graph, field).extend(
            helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in values.items()
        )
    graph.ClearField("value_info")  # of the sizes of the example
    checker.check_model(model)
