"""Ctrl-C and SIGTERM: what is begun is finished and saved before they take effect."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came. What cleans up behind Ctrl-C cleans up behind it, too."""


def exit_status(stopped: KeyboardInterrupt) -> int:
    """Return the exit status of a process that a signal has ended: 128 and the signal's number."""
    return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Let SIGTERM raise Terminated within the block, as Ctrl-C raises KeyboardInterrupt; in the main thread only."""

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
    """Postpone Ctrl-C and SIGTERM to the end of the block; yields a function that tells whether one has come.

    The second one takes effect at once. Where no signal can be handled (another thread than the main one, a process
    that was told to ignore them) nothing is postponed.
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
