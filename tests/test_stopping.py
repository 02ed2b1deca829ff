import os
import signal
import threading
import time

import pytest

from tagseg.stopping import Terminated, exit_status, postponed, raised

BOTH = pytest.mark.parametrize(
    ("number", "expected", "status"), [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, Terminated, 143)]
)


@BOTH
def test_a_signal_waits_for_the_end_of_the_block(
    number: signal.Signals, expected: type[KeyboardInterrupt], status: int
) -> None:
    seen = []
    with pytest.raises(expected) as caught, raised(), postponed() as asked:
        seen.append(asked())
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        seen.append(asked())
    assert seen == [False, True] and exit_status(caught.value) == status
    assert type(caught.value) is expected


@BOTH
def test_the_second_signal_acts_at_once(number: signal.Signals, expected: type[KeyboardInterrupt], status: int) -> None:
    reached = False
    with pytest.raises(expected), raised(), postponed():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(number)
        reached = True
    assert not reached


def test_handlers_are_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with raised():
        assert signal.getsignal(signal.SIGTERM) is not before
        with postponed() as asked:
            assert not asked()
    assert signal.getsignal(signal.SIGTERM) is before and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_goes_before_no_signal() -> None:
    with pytest.raises(ValueError, match="loss"), postponed():
        raise ValueError("loss")


def test_a_process_that_ignores_a_signal_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with postponed() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_handles_no_signals() -> None:
    seen = []

    def work() -> None:
        with raised(), postponed() as asked:
            seen.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
