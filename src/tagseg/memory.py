"""Peak memory of this process, as the system counts it, and searches for garbage put off."""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path


def reset_peak_memory() -> None:
    """Let the peak be counted from now on, where the system can do so (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def ran_out(error: Exception) -> str:
    """Return what an error says of memory that ran out, the computer's or a GPU's; empty where it is another error."""
    said = str(error).splitlines()[0][:200] if str(error) else "not enough of it"
    # By what they are called: this module does without torch.
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return said if known or says_out_of_memory(said) else ""


def says_out_of_memory(said: str) -> bool:
    """Tell whether a message, perhaps another process's, is one of memory that ran out."""
    allocators = ("DefaultCPUAllocator", "out of memory", "not enough memory", "OutOfMemory", "MemoryError")
    return any(words in said for words in (*allocators, "DataLoader worker (pid"))


def peak_memory_mb() -> float:
    """Return this process's peak resident memory since the last reset, in MB (0 where the system does not tell)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def no_garbage() -> Iterator[None]:
    """Put off Python's searches for garbage: while a million objects are made, none of them garbage, they would take
    longer than making them."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
