"""This process and its machine: memory, cores, versions, and the number of processes launched together."""

import contextlib
import gc
import os
import platform
import re
import sys
import types
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def reset_peak_memory() -> None:
    """Start measuring peak memory from now on (Linux only)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def ran_out(error: Exception) -> str:
    """Return the message of an out-of-memory error, of the computer or a GPU; empty for any other error."""
    message = said_by(error).splitlines()[0][:200] if str(error) else "no details"
    # Recognised by name, because this module does not import torch.
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return message if known or says_out_of_memory(message) else ""


def said_by(error: Exception) -> str:
    """Return an error's message; of one that PyTorch brings from a process that reads images, without the traceback in
    front of it."""
    text = str(error)
    if not (text.startswith("Caught ") and "\nOriginal Traceback" in text):
        return text
    # The traceback's own lines are indented; the error follows them as "module.Name: message".
    *_, last = re.split(r"\n(?=[A-Za-z_][\w.]*(?:: |\n|$))", text.strip())
    return last.partition(": ")[2] or last


def says_out_of_memory(message: str) -> bool:
    """Tell whether a message, perhaps from another process, says that memory ran out."""
    allocators = (
        *("DefaultCPUAllocator", "out of memory", "not enough memory", "OutOfMemory", "MemoryError", "bad_alloc"),
        *("Cannot allocate memory", "can't start new thread", "could not create a primitive"),
    )  # the last one is oneDNN's
    # The system ends a process that reads images by a signal; one that fails by itself "exited unexpectedly".
    killed = "DataLoader worker (pid" in message and "killed by signal" in message
    return killed or any(words in message for words in allocators)


def lacks_shared_memory(error: Exception) -> str:
    """Return the message of an error of processes that share tensors where /dev/shm is full; empty for any other."""
    message = said_by(error).splitlines()[0][:200] if str(error) else ""
    words = ("shared memory", "Bus error", "file </torch_", "ancdata")
    return message if any(one in message for one in words) and "open files" not in message else ""


@contextlib.contextmanager
def script_hidden() -> Iterator[None]:
    """Hide the caller's script from multiprocessing in the block.

    A spawned process first imports the script of its parent. Without `if __name__ == "__main__":` in it, that would
    start the same work again, and the process would fail.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process since the last reset, in MB (0 if the system does not tell)."""
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
    """Pause Python's garbage collection in the block.

    While a program creates a million objects and none is garbage, collecting takes longer than creating them.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def cores() -> int:
    """Return the number of cores that this process may use: a container or a scheduler may grant fewer than exist."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launched() -> tuple[int, int]:
    """Return the rank of this process (from 0) and the number of processes launched together: (0, 1) if it is alone."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


PACKAGES = ("tagseg", "torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy", "pillow")


def machine() -> str:
    """Describe the machine: cores, processor, memory, system, and the GPU if PyTorch is loaded."""
    torch = sys.modules.get("torch")
    gpu = f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores, {processor()}, {_memory_gb()} GB, {platform.system()}{gpu}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that influence results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # tagseg itself, in a checkout that is not installed
            continue
    return found


def processor() -> str:
    """Return the name of the processor."""
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
