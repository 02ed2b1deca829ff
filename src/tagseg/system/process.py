"""This process and its machine: memory, cores, versions, and how many processes were launched together."""

import contextlib
import gc
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
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
def gc_paused() -> Iterator[None]:
    """Put off Python's searches for garbage: while a million objects are made, none of them garbage, they would take
    longer than making them."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def cores() -> int:
    """Return how many cores this process may use: a container or a scheduler may grant fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launched() -> tuple[int, int]:
    """Return this process's number, from 0, and how many were launched together: (0, 1) when it runs by itself."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


PACKAGES = ("tagseg", "torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy", "pillow")


def machine() -> str:
    """Return the machine in words: cores, processor, memory, system, and the GPU of a PyTorch that is loaded."""
    torch = sys.modules.get("torch")
    gpu = f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores, {_processor()}, {_memory_gb()} GB, {platform.system()}{gpu}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout
            continue
    return found


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> int:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal"):
            return round(int(line.split()[1]) / 1024**2)
    return 0


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
