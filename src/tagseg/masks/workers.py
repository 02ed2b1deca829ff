"""Worker processes that make masks, one image at a time each, while the main process does something else.

A worker is `python -m tagseg.masks.worker RUN PID [ASIDE]` and communicates in lines of JSON. Unlike a worker of
multiprocessing, it neither imports torch nor runs the caller's script again, and its death is noticed at once.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tagseg.data.records import Sample
from tagseg.errors import RunError
from tagseg.run.folder import Run

WORKER_GRACE_S = 20.0
"""Seconds in which an interrupted worker may finish its image before it is killed."""

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class Made(NamedTuple):
    """An image whose masks are written: its id, whether they contain none of its tags, and the peak memory of its
    worker so far in MB (0 in the main process)."""

    id: str
    blank: bool
    peak_mb: float


class MaskWorkers(NamedTuple):
    """A pool of workers. `give` queues a sample, unless it was queued before, and returns immediately; `made` yields
    the queued samples as they are finished, until none is left. Both raise RunError if a mask could not be made.
    `given` maps the id of each queued sample to the value of time.monotonic() at that moment."""

    give: Callable[[Sample], None]
    made: Callable[[], Iterator[Made]]
    given: Mapping[str, float]


class _Shared(NamedTuple):
    """State shared by the main thread and one thread per worker: the samples to do, the results, the errors among them,
    and the running workers. A None in `todo` ends a thread."""

    todo: "queue.SimpleQueue[Sample | None]"
    done: "queue.SimpleQueue[Made | Exception]"
    failures: list[Exception]
    children: "list[subprocess.Popen[str]]"


@contextlib.contextmanager
def mask_workers(
    run: Run, sizes: Mapping[str, tuple[int, int]], count: int, make: Callable[[Sample], Made]
) -> Iterator[MaskWorkers]:
    """Yield `count` workers that make masks of the given `sizes`, sample id -> (height, width). A worker process starts
    with its first image.

    With 0 workers, `make` makes each mask in the main process when `made` is asked for it. If the block is left early,
    images in progress are finished and all others are dropped.
    """
    shared = _Shared(queue.SimpleQueue(), queue.SimpleQueue(), [], [])
    given: dict[str, float] = {}

    def give(sample: Sample) -> None:
        if shared.failures:
            raise shared.failures[0]
        if sample.id not in given:
            given[sample.id] = time.monotonic()
            shared.todo.put(sample)

    def made() -> Iterator[Made]:
        for _ in range(len(given)):
            outcome = shared.done.get() if count else make(_next(shared))
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    # Daemon threads, because a worker that hangs must not keep the interpreter from exiting.
    threads = [threading.Thread(target=_drive, args=(shared, run, sizes), daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield MaskWorkers(give, made, given)
    finally:
        with contextlib.suppress(queue.Empty):
            while True:
                shared.todo.get_nowait()
        for _ in threads:
            shared.todo.put(None)
        _end(threads, shared.children)


def _drive(shared: _Shared, run: Run, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Let one worker process samples until there are none left or it fails."""
    child = None
    try:
        while (sample := shared.todo.get()) is not None:
            if child is None:
                child = _start(run)
                shared.children.append(child)
            shared.done.put(_ask(child, sample, sizes[sample.id]))
    except Exception as error:  # any error at all: the main thread waits for an answer
        shared.failures.append(error)
        shared.done.put(error)
    finally:
        if child is not None:
            _dismiss(child)


def _next(shared: _Shared) -> Sample:
    sample = shared.todo.get()
    assert sample is not None, "None is only queued when the block is left"
    return sample


def _start(run: Run) -> "subprocess.Popen[str]":
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tagseg.masks.worker", str(run.root), str(os.getpid()), str(run.aside or "")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="ascii",
        env=os.environ | _ONE_THREAD | {"PYTHONPATH": paths},
        # In its own process group: Ctrl-C reaches only the main process, which lets images in progress be finished.
        process_group=0,
    )


def _ask(child: "subprocess.Popen[str]", sample: Sample, size: tuple[int, int]) -> Made:
    assert child.stdin is not None and child.stdout is not None
    try:
        saliency = str(sample.saliency) if sample.saliency else None
        asked = [sample.id, str(sample.image), sample.tags, saliency, size]
        child.stdin.write(json.dumps(asked) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except OSError:  # the worker died between two images
        line = ""
    if not line.endswith("\n"):
        raise RunError(
            f"{sample.image}: the worker process that made its mask {_end_of(child.wait())}; run the same command "
            "again to resume, and use fewer --workers if it happens again"
        )
    answer = json.loads(line)
    if "error" in answer:
        raise RunError(answer["error"])
    return Made(sample.id, answer["blank"], answer["peak_mb"])


def _end_of(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    hint = ", perhaps because the system ran out of memory" if status == -signal.SIGKILL else ""
    return f"was killed by signal {-status}{hint}"


def _dismiss(child: "subprocess.Popen[str]") -> None:
    """Close the input of a worker, which ends it, and wait for it."""
    with contextlib.suppress(OSError):  # input that it never read cannot be flushed
        child.stdin.close()  # type: ignore[union-attr]
    child.wait()
    child.stdout.close()  # type: ignore[union-attr]


def _end(threads: list[threading.Thread], children: "list[subprocess.Popen[str]]") -> None:
    deadline = time.monotonic() + WORKER_GRACE_S
    try:
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for thread in threads:
            thread.join()
