"""How Python becomes machine code here: Numba's compiler, and an instruction that it does not offer itself."""

import inspect
from typing import Any, TypeVar

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

F = TypeVar("F")


def jit(function: F) -> F:
    """Compile a function when it is first called, and keep the machine code on disk where that is possible."""
    # Tests wrap functions to check shapes; Numba reads the function itself.
    plain = inspect.unwrap(function)  # type: ignore[arg-type]
    try:
        compiled: F = njit(plain, nogil=True, cache=True)
    except RuntimeError:  # neither beside this file nor in the user's cache folder may anything be written
        compiled = njit(plain, nogil=True)
    return compiled


def _fetch(context: Any, array: Any, row: Any) -> Any:
    del context  # Numba asks for it, and finds it by its place

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(array)(context, builder, arguments[0])
        stride = builder.extract_value(view.strides, 0)
        start = builder.ptrtoint(view.data, stride.type)
        offset = builder.mul(builder.zext(arguments[1], stride.type), stride)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        for line in (0, 64):
            address = builder.inttoptr(builder.add(builder.add(start, offset), ir.Constant(stride.type, line)), byte)
            # To be written, to be kept, data.
            builder.call(prefetch, [address, *(ir.Constant(number, flag) for flag in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, row), emit


fetch: Any = intrinsic(_fetch)
"""`fetch(array, row)` has the first 128 bytes of a row brought into the cache, without waiting for them."""
