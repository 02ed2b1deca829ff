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
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    if not sys.stderr.isatty():
        yield from _lines(items, title, total)
        return
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=title)


def _lines(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    started = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES and done < total:
            said = now
            left = (now - started) / done * (total - done)
            log.info("%s: %d/%d, %s gone, %s left", title, done, total, _minutes(now - started), _minutes(left))


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
