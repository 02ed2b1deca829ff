import logging
import sys

import pytest

from tagseg.run import clock as module
from tagseg.run.clock import Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the clock sees, to be changed."""
    seconds = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    return seconds


def test_the_clock_says_stage_work_and_what_is_left_in_all(now: list[float]) -> None:
    clock = Clock({"train": 600.0, "localise": 300.0, "segment": 900.0})
    assert clock.text() == "reading the data"
    clock.enter("train")
    assert clock.text() == "stage 1 of 6, learning the tags, about 30 minutes left in all"
    now[0] += 300
    assert clock.left() == 300 + 300 + 900
    assert clock.left(loop=500.0) == 500 + 300 + 900, "what the work itself says counts if it is more"
    assert clock.left(loop=100.0, whole=True) == 100 + 300 + 900, "an epoch tells how long those after it take"
    now[0] += 900  # twice as long as planned
    clock.enter("localise")
    assert clock.left() == 2 * (300 + 900)
    assert clock.text() == "stage 2 of 6, finding where each tag is, about 40 minutes left in all"


def test_a_loop_over_epochs_tells_of_those_that_follow(now: list[float], caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock({"segment": 1.0})
    with caplog.at_level(logging.INFO):
        clock.enter("segment")
        for _ in clock(range(4), "segment, epoch 2/10", 4):
            now[0] += 30
    first, second = (record.message for record in caplog.records)
    assert first == "stage 4 of 6, training the segmentation network, less than a minute left in all"
    assert second.endswith("about 17 minutes left in all (segment, epoch 2/10, 2 of 4)")


def test_the_pace_of_a_training_counts_more_than_what_was_planned(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """The whole of the training, of which each epoch is too short to tell."""
    clock = Clock({"train": 10000.0, "localise": 120.0})
    with caplog.at_level(logging.INFO):
        clock.enter("train")
        for epoch in (1, 2, 3):
            for _ in clock(range(4), f"train, epoch {epoch}/10", 4):
                now[0] += 8
    assert [record.message.partition("tags, ")[2] for record in caplog.records] == [
        "about 2.8 hours left in all",
        "about 6 minutes left in all (train, epoch 3/10, 1 of 4)",
    ]


def test_in_a_terminal_nothing_but_that_line_is_shown(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    clock = Clock({"masks": 60.0})
    clock.enter("masks")
    assert list(clock("abc", "masks", 3)) == ["a", "b", "c"]
    shown = capsys.readouterr()
    assert not shown.out and not caplog.records
    assert "stage 3 of 6, drawing the masks, about 1 minute left in all" in shown.err
    assert shown.err.endswith("\x1b[1A\x1b[2K") or shown.err.count("\n") <= 1
