import os
import signal
import threading
import time

import pytest

from tagseg.system.signals import Terminated, delay_signals, exit_status, raised

BOTH = pytest.mark.parametrize(
    ("number", "expected", "status"), [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, Terminated, 143)]
)


@BOTH
def test_a_signal_takes_effect_at_the_end_of_the_block(
    number: signal.Signals, expected: type[KeyboardInterrupt], status: int
) -> None:
    seen = []
    with pytest.raises(expected) as caught, raised(), delay_signals() as asked:
        seen.append(asked())
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        seen.append(asked())
    assert seen == [False, True] and exit_status(caught.value) == status
    assert type(caught.value) is expected


@BOTH
def test_a_second_signal_takes_effect_at_once(
    number: signal.Signals, expected: type[KeyboardInterrupt], status: int
) -> None:
    reached = False
    with pytest.raises(expected), raised(), delay_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(number)
        reached = True
    assert not reached


def test_handlers_are_restored_after_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with raised():
        assert signal.getsignal(signal.SIGTERM) is not before
        with delay_signals() as asked:
            assert not asked()
    assert signal.getsignal(signal.SIGTERM) is before and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_in_the_block_is_raised_when_no_signal_was_received() -> None:
    with pytest.raises(ValueError, match="loss"), delay_signals():
        raise ValueError("loss")


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with delay_signals() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_are_not_handled_outside_the_main_thread() -> None:
    seen = []

    def work() -> None:
        with raised(), delay_signals() as asked:
            seen.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
