"""Four or eight numbers at a time, in compiled code: Numba vectorises loops, but none as short as a row of labels.

Numba keeps machine code as long as the file of the function itself is unchanged: after a change here, delete what it
keeps (`__pycache__/*.nbi`, `*.nbc`).
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model


class Lanes(types.Type):
    """Numba's type of a vector of so many float32 numbers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.machine = ir.VectorType(ir.FloatType(), count)
        super().__init__(name=f"Lanes({count})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """A vector is one of the machine's own."""

    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, lanes.machine)  # type: ignore[no-untyped-call]


def _zeros(count: int) -> Any:
    lanes = Lanes(count)

    def zeros(context: Any) -> Any:
        del context  # Numba asks for it, and finds it by its place

        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return ir.Constant(lanes.machine, [0.0] * count)

        return lanes(), emit

    return intrinsic(zeros)


def _place(context: Any, builder: Any, kinds: Any, arguments: Any, lanes: Any) -> Any:
    """Return the pointer to `array[row, column]` as one to a vector."""
    array, row, column = arguments
    view = context.make_array(kinds[0])(context, builder, array)
    stride = builder.extract_value(view.strides, 0)
    start = builder.bitcast(view.data, ir.IntType(8).as_pointer())
    offset = builder.add(builder.mul(row, stride), builder.mul(column, ir.Constant(stride.type, 4)))
    return builder.bitcast(builder.gep(start, [offset]), lanes.machine.as_pointer())


def _load(context: Any, array: Any, row: Any, column: Any, like: Any) -> Any:
    del context

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, signature.args, arguments[:3], like), align=4)

    return like(array, types.intp, types.intp, like), emit


def _store(context: Any, array: Any, row: Any, column: Any, vector: Any) -> Any:
    del context

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[3], _place(context, builder, signature.args, arguments[:3], vector), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector), emit


def _add_scaled(context: Any, total: Any, factor: Any, vector: Any) -> Any:
    del context

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        added, number, numbers = arguments
        empty = ir.Constant(vector.machine, ir.Undefined)
        one = builder.insert_element(empty, number, ir.Constant(ir.IntType(32), 0))
        first = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
        product = builder.fmul(builder.shuffle_vector(one, empty, first), numbers, flags=("contract",))
        return builder.fadd(added, product, flags=("contract",))

    return total(total, types.float32, vector), emit


four: Any = _zeros(4)
"""`four()`: four zeros."""

eight: Any = _zeros(8)
"""`eight()`: eight zeros."""

load: Any = intrinsic(_load)
"""`load(array, row, column, like)`: as many numbers of a float32 array, from there on, as the vector `like` has."""

store: Any = intrinsic(_store)
"""`store(array, row, column, vector)`: write numbers."""

add_scaled: Any = intrinsic(_add_scaled)
"""`add_scaled(total, factor, vector)`: total + factor * vector."""
