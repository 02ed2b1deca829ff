"""Handling of Ctrl-C and SIGTERM: a step that has begun is finished and saved before they take effect."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM was received. Code that cleans up after Ctrl-C also cleans up after this."""


def exit_status(stopped: KeyboardInterrupt) -> int:
    """Return the exit status of a process that was ended by a signal: 128 plus the number of the signal."""
    return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise Terminated on SIGTERM in the block, as KeyboardInterrupt on Ctrl-C; in the main thread only."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if not _handled(signal.SIGTERM):
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def delay_signals() -> Iterator[Callable[[], bool]]:
    """Delay Ctrl-C and SIGTERM until the end of the block; yield a function that tells whether one was received.

    A second signal takes effect at once. Nothing is delayed where signals cannot be handled: outside the main thread,
    and in a process that ignores them.
    """
    came: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            restore()
            signal.raise_signal(number)

    try:
        for number in filter(_handled, _SIGNALS):
            before[number] = signal.signal(number, note)
        yield lambda: bool(came)
    finally:
        restore()
        if len(came) == 1:
            signal.raise_signal(came[0])


def _handled(number: signal.Signals) -> bool:
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(number) not in (signal.SIG_IGN, None)
