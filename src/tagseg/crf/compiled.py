"""Compilation of Python functions to machine code by Numba."""

import inspect
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F")


def jit(function: F) -> F:
    """Compile a function when it is first called, and cache the machine code on disk where that is possible."""
    return _compiled(function)


def jit_fused(function: F) -> F:
    """Compile a function as `jit` does, and round `a + b * c` only once where the processor can."""
    return _compiled(function, fastmath={"contract"})


def _compiled(function: F, **options: Any) -> F:
    # Tests wrap functions to check shapes; Numba reads the function itself.
    plain = inspect.unwrap(function)  # type: ignore[arg-type]
    try:
        compiled: F = njit(plain, nogil=True, cache=True, **options)
    except RuntimeError:  # neither the folder of this file nor the user's cache folder is writable
        compiled = njit(plain, nogil=True, **options)
    return compiled
