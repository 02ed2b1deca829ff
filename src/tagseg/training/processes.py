"""One process drives, several train: they are started for one training, report to their driver, and end with it.

Each is `python -m MODULE`, where the module calls `serve`. It reads its job from standard input, and reports progress,
log lines and errors as lines of JSON on standard output. Neither multiprocessing, which would run the caller's script
again, nor PyTorch's elastic agent, which kills after 30 s what has not ended by then, leaves a process the time to
finish its step and save the state of the training.
"""

import contextlib
import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tagseg.errors import DataError, RunError, WriteError
from tagseg.settings.bounds import AtLeastOne, check_value
from tagseg.system.process import cores, launched
from tagseg.system.progress import Track, silent
from tagseg.system.signals import Terminated, delay_signals, exit_status, raised
from tagseg.training.distributed import TIMEOUT, LostProcess

T = TypeVar("T")

GRACE_S = 20.0
"""Seconds that the other processes have to end after one has failed; then they are killed."""

_WAKE_S = 0.2
"""Seconds between two looks at signals while no process reports anything."""

_STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM}
"""How a process ends that was asked to: with its status, or by the signal itself while it was still starting."""

_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (DataError, RunError, WriteError, ValueError, OSError, MemoryError)
}
"""The errors that the driver raises as they are; any other becomes a RuntimeError."""


@dataclass
class _Team:
    """The processes, what they report (None: a process has ended), their errors by rank, and when they are killed."""

    children: "list[subprocess.Popen[str]]" = field(default_factory=list)
    inbox: "queue.SimpleQueue[tuple[int, dict[str, Any] | None]]" = field(default_factory=queue.SimpleQueue)
    errors: dict[int, dict[str, Any]] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    deadline: float = math.inf


def run_processes(module: str, job: str, count: int, track: Track = silent) -> None:
    """Start `count` processes on this machine that do a job together, and wait for them as their parent.

    Ctrl-C and SIGTERM are passed on: the processes finish their step, save the state and end; then the signal takes
    effect here. A second signal kills them. When one of them fails, so do the others.

    Args:
        module: the module that each process runs; it calls `serve`.
        job: one line of text, which describes the job.

    Raises:
        ValueError: when there are fewer GPUs than processes.
        RunError: when a process was killed or ended without an error of its own. Errors of the processes are raised as
            they are.
        KeyboardInterrupt: when a process was asked to end.
    """
    # What this process no longer uses on a GPU, the first of the others can use there.
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    # The system chooses a free port, and the driver keeps it open until all have ended.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)  # type: ignore[attr-defined]
    team = _Team()
    with delay_signals() as came:
        try:
            for rank in range(count):
                _start(team, module, rank, count, store.port, job)
            progress = _progress(team, came)
            for message in progress:
                if "total" in message:
                    deque(track(_items(progress), message["title"], message["total"]), maxlen=0)
        finally:
            for child in team.children:
                if child.poll() is None:
                    child.kill()
                child.wait()
                with contextlib.suppress(OSError):  # what it never read cannot be flushed
                    child.stdin.close()  # type: ignore[union-attr]
        if not came():
            _raise_failure(team)


def require_devices(count: int, device: str) -> None:
    """Check that this machine has a device for each of `count` processes.

    Raises:
        ValueError: when it has too few GPUs, or `device` is a single one.
    """
    check_value("--processes", count, AtLeastOne)
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"--processes {count}: each process needs a device of its own, got --device {device}; use auto"
        )
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if 0 < gpus < count:
        raise ValueError(f"--processes {count}: each process needs a GPU of its own, this machine has {gpus}")


def _start(team: _Team, module: str, rank: int, count: int, port: int, job: str) -> None:
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the driver's, which `port` belongs to
        "TORCHELASTIC_RESTART_COUNT": "0",
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(cores() // count, 1))),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=environment,
        # A group of its own: Ctrl-C reaches the driver only, which passes it on.
        process_group=0,
    )
    team.children.append(child)
    assert child.stdin is not None
    level = logging.getLogger("tagseg").getEffectiveLevel()
    with contextlib.suppress(BrokenPipeError):  # it has ended already, which is noticed below
        child.stdin.write(json.dumps({"job": job, "level": level}) + "\n")
        child.stdin.flush()
    threading.Thread(target=_read, args=(child, rank, team.inbox), daemon=True).start()


def _read(
    child: "subprocess.Popen[str]", rank: int, inbox: "queue.SimpleQueue[tuple[int, dict[str, Any] | None]]"
) -> None:
    assert child.stdout is not None
    with child.stdout, contextlib.suppress(ValueError):  # half a line, from a process that was killed
        for line in child.stdout:
            inbox.put((rank, json.loads(line)))
    inbox.put((rank, None))


def _progress(team: _Team, came: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Yield reports of progress until all processes have ended; pass on log lines and signals, and keep errors."""
    running, told = set(range(len(team.children))), False
    while running:
        if came() and not told:
            told = True
            for rank in running:
                team.children[rank].terminate()
        if any(team.children[rank].poll() not in (None, 0) for rank in range(len(team.children))):
            team.deadline = min(team.deadline, time.monotonic() + GRACE_S)
        if time.monotonic() > team.deadline:
            for rank in running - team.killed:
                team.killed.add(rank)
                team.children[rank].kill()
        try:
            rank, message = team.inbox.get(timeout=_WAKE_S)
        except queue.Empty:
            continue
        if message is None:
            running.discard(rank)
            team.children[rank].wait()
        elif "log" in message:
            logging.getLogger(message["logger"]).log(message["level"], "%s", message["log"])
        elif "error" in message:
            team.errors[rank] = message
        else:
            yield message


def _items(progress: Iterator[dict[str, Any]]) -> Iterator[None]:
    for message in progress:
        if "item" not in message:
            return
        yield None


def _raise_failure(team: _Team) -> None:
    """Raise the error that ended the training: of the processes' errors the first that is not about another process."""
    count = len(team.children)
    for message in team.errors.values():
        if not message["lost"]:
            kind = _ERRORS.get(message["kind"])
            raise kind(message["error"]) if kind else RuntimeError(f"{message['kind']}: {message['error']}")
    statuses = {rank: child.returncode for rank, child in enumerate(team.children) if rank not in team.killed}
    if any(status in _STOPPED for status in statuses.values()):
        raise Terminated
    for rank, status in statuses.items():
        if status and rank not in team.errors:
            raise RunError(
                f"process {rank} of {count} {_ending(status)}. Run the same command again to resume after the last "
                "finished epoch"
            )
    for message in team.errors.values():
        raise LostProcess(message["error"])


def _ending(status: int) -> str:
    if status > 0:
        return f"ended with status {status}; its own error, if it wrote one, is above"
    hint = ", which systems do when memory runs out" if status == -signal.SIGKILL else ""
    return f"was killed by signal {-status}{hint}"


def serve(work: Callable[[str, Track], None]) -> None:
    """Do the job that the driver sends, as one of the processes that `run_processes` has started, and end.

    Progress and log lines are reported by the main process. When the driver has ended, so does this process: nobody
    would hold the run folder's lock, or know of the training, any more.
    """
    channel, lock = os.fdopen(os.dup(1), "w", encoding="utf-8"), threading.Lock()
    os.dup2(2, 1)  # what a library prints must not mix with the reports

    def tell(**message: Any) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            channel.write(json.dumps(message) + "\n")
            channel.flush()

    def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        tell(title=title, total=total)
        for item in items:
            yield item
            tell(item=1)
        tell(end=1)

    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_driver, daemon=True).start()
    logger = logging.getLogger("tagseg")
    logger.setLevel(order["level"])
    logger.addHandler(_Teller(tell))
    logger.propagate = False
    try:
        with raised():
            work(order["job"], track if launched()[0] == 0 else silent)
    except KeyboardInterrupt as stopped:
        raise SystemExit(exit_status(stopped)) from None
    except Exception as error:
        kind = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS), type(error).__name__)
        if kind not in _ERRORS:
            traceback.print_exc()
        tell(error=str(error), kind=kind, lost=isinstance(error, LostProcess))
        raise SystemExit(1) from None


class _Teller(logging.Handler):
    """Reports log lines to the driver."""

    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__()
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Report one line."""
        self.tell(log=record.getMessage(), logger=record.name, level=record.levelno)


def _end_with_driver() -> None:
    # Not by sys.stdin, whose lock a thread must not hold when the interpreter ends.
    while os.read(0, 4096):
        pass
    os._exit(1)
