"""How stages go through many items: they report progress, and threads may work ahead of them."""

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
    """Pass `items` through; `title` says what is being done, `total` how many items there are."""

    def __call__(self, items: Iterable[T], title: str, total: int) -> Iterator[T]: ...


def silent(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Report nothing."""
    return iter(items)


def bars(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Draw a bar with time gone and time left on the terminal; elsewhere log a line every half minute."""
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


def _lines(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    started = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES and done < total:
            said = now
            left = (now - started) / done * (total - done)
            gone, pace = now - started, images_per_s(done, now - started)
            log.info("%s: %d/%d, %.1f/s, %s gone, %s left", title, done, total, pace, _minutes(gone), _minutes(left))


def images_per_s(images: int, seconds: float) -> float:
    """Return how many images were done in a second, to two decimals; 0 where there were none."""
    return round(images / seconds, 2) if images and seconds > 0 else 0.0


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def map_ahead(items: Iterable[A], work: Callable[[A], B], threads: int) -> Generator[B]:
    """Yield the outcomes of `work` in the order of the items; threads are at work on a few items ahead, and what they
    have begun is finished when the iteration ends early."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
