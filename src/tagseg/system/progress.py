"""Iteration over many items: progress reports, and threads that work ahead."""

import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar, runtime_checkable

log = logging.getLogger(__name__)

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")

SECONDS_BETWEEN_LINES = 30


@runtime_checkable
class Track(Protocol):
    """Pass `items` through and report progress; `title` names the work, `total` is the number of items."""

    def __call__(self, items: Iterable[T], title: str, total: int) -> Iterator[T]: ...


def silent(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Pass items through without a report."""
    return iter(items)


def bars(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Show a progress bar with elapsed and remaining time; without a terminal, log a line every 30 seconds."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    if not sys.stderr.isatty():
        yield from _lines(items, title, total)
        return
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task, started = progress.add_task(title, total=total, pace=""), time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            pace = images_per_s(done, time.monotonic() - started)
            progress.update(task, completed=done, pace=f"{pace:.1f}/s")


def tell(line: str) -> None:
    """Print a line that a function called from Python ends with; the command line prints its own."""
    sys.stderr.write(f"{line}\n")


def _lines(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    started = logged = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - logged >= SECONDS_BETWEEN_LINES and done < total:
            logged = now
            elapsed = now - started
            left, pace = elapsed / done * (total - done), images_per_s(done, elapsed)
            times = _minutes(elapsed), _minutes(left)
            log.info("%s: %d/%d, %.1f/s, %s elapsed, %s left", title, done, total, pace, *times)


def images_per_s(images: int, seconds: float) -> float:
    """Return the images per second, rounded to two decimals; 0 if there were none."""
    return round(images / seconds, 2) if images and seconds > 0 else 0.0


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def map_ahead(items: Iterable[A], work: Callable[[A], B], threads: int) -> Generator[B]:
    """Yield the results of `work` in the order of the items, while threads work on the next items.

    If the iteration ends early, the threads finish the items they have started.
    """
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def map_side_by_side(items: Iterable[A], work: Callable[[A], B], threads: int) -> Generator[B]:
    """As `map_ahead`, but PyTorch uses only the thread that calls `work`: for small tensors, several threads with an
    item each are faster than all of them on one item."""
    import torch  # commands that compute nothing do without it

    def alone(item: A) -> B:
        torch.set_num_threads(1)
        return work(item)

    before = torch.get_num_threads()
    try:
        with contextlib.closing(map_ahead(items, alone, threads)) as results:
            yield from results
    finally:
        torch.set_num_threads(before)
