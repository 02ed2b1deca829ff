"""Worker processes that make masks while the main process does something else: each has one image at a time.

A worker is `python -m tagseg.masks.worker RUN PID`, spoken to in lines of JSON: unlike multiprocessing's it neither
imports torch nor runs the caller's script again, and its death is seen at once.
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

GRACE_S = 20.0
"""Seconds that an interrupted worker has to finish its image before it is killed."""

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class Made(NamedTuple):
    """An image whose masks are written: its id, whether they hold none of its tags, its worker's peak memory so far
    in MB (0 in the main process)."""

    id: str
    blank: bool
    peak_mb: float


class MaskWorkers(NamedTuple):
    """Workers at hand. `give` hands over a sample, once, and returns at once; `made` yields what was handed over as it
    gets finished, until nothing is left. Both raise RunError when a mask could not be made. `given`: sample id ->
    time.monotonic() when it was handed over."""

    give: Callable[[Sample], None]
    made: Callable[[], Iterator[Made]]
    given: Mapping[str, float]


class _Desk(NamedTuple):
    """What the main process and the threads share, one thread a worker: samples to do and what became of them, the
    errors among it, and the workers that run. A None in `todo` sends a thread home."""

    todo: "queue.SimpleQueue[Sample | None]"
    done: "queue.SimpleQueue[Made | Exception]"
    failures: list[Exception]
    children: "list[subprocess.Popen[str]]"


@contextlib.contextmanager
def mask_workers(
    run: Run, sizes: Mapping[str, tuple[int, int]], count: int, make: Callable[[Sample], Made]
) -> Iterator[MaskWorkers]:
    """Yield `count` workers that make masks of `sizes` (height, width) by sample id; they start with the first images.

    With 0 workers `make` makes a mask in the main process whenever `made` is asked for the next. When the block is left
    early, images in flight are finished and all others dropped.
    """
    desk = _Desk(queue.SimpleQueue(), queue.SimpleQueue(), [], [])
    given: dict[str, float] = {}

    def give(sample: Sample) -> None:
        if desk.failures:
            raise desk.failures[0]
        if sample.id not in given:
            given[sample.id] = time.monotonic()
            desk.todo.put(sample)

    def made() -> Iterator[Made]:
        for _ in range(len(given)):
            outcome = desk.done.get() if count else make(_next(desk))
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    # Daemons: a hanging worker must not keep the interpreter from ending.
    threads = [threading.Thread(target=_drive, args=(desk, run, sizes), daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield MaskWorkers(give, made, given)
    finally:
        with contextlib.suppress(queue.Empty):
            while True:
                desk.todo.get_nowait()
        for _ in threads:
            desk.todo.put(None)
        _end(threads, desk.children)


def _drive(desk: _Desk, run: Run, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Have one worker do what is to do, until there is no more or it fails."""
    child = None
    try:
        while (sample := desk.todo.get()) is not None:
            if child is None:
                child = _start(run)
                desk.children.append(child)
            desk.done.put(_ask(child, sample, sizes[sample.id]))
    except Exception as error:  # whatever it is: the main process waits for an answer
        desk.failures.append(error)
        desk.done.put(error)
    finally:
        if child is not None:
            _dismiss(child)


def _next(desk: _Desk) -> Sample:
    sample = desk.todo.get()
    assert sample is not None, "the end is put there when the block is left"
    return sample


def _start(run: Run) -> "subprocess.Popen[str]":
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tagseg.masks.worker", str(run.root), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="ascii",
        env=os.environ | _ONE_THREAD | {"PYTHONPATH": paths},
        # Its own group: Ctrl-C reaches the main process alone, which lets images in flight be finished.
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
    except OSError:  # it died between two images
        line = ""
    if not line.endswith("\n"):
        raise RunError(
            f"{sample.image}: the worker process that made its mask {_end_of(child.wait())}; run the same command "
            "again to continue, and with fewer --workers should it happen again"
        )
    answer = json.loads(line)
    if "error" in answer:
        raise RunError(answer["error"])
    return Made(sample.id, answer["blank"], answer["peak_mb"])


def _end_of(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    hint = ", as systems do that run out of memory" if status == -signal.SIGKILL else ""
    return f"was killed by signal {-status}{hint}"


def _dismiss(child: "subprocess.Popen[str]") -> None:
    """Let a worker end, as it does when nothing more is asked of it."""
    with contextlib.suppress(OSError):  # what it never read cannot be flushed
        child.stdin.close()  # type: ignore[union-attr]
    child.wait()
    child.stdout.close()  # type: ignore[union-attr]


def _end(threads: list[threading.Thread], children: "list[subprocess.Popen[str]]") -> None:
    deadline = time.monotonic() + GRACE_S
    try:
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for thread in threads:
            thread.join()
