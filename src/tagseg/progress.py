"""How stages report progress: a function that passes an iterable through and may draw a bar."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

log = logging.getLogger(__name__)

T = TypeVar("T")

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
