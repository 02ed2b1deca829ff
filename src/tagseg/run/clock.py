"""One clock for a run: which stage it is in, what that does, and how long all of it still takes."""

import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from tagseg.run.estimate import in_words
from tagseg.run.stages import STAGES, Stage

log = logging.getLogger(__name__)

T = TypeVar("T")

_BETWEEN_LINES = 60
"""Seconds between two log lines of a stage."""

_SURE = 10
"""Seconds of a training after which its own pace counts more than what was planned."""

DOING: Mapping[Stage, str] = {
    "train": "learning the tags",
    "localise": "finding where each tag is",
    "masks": "drawing the masks",
    "segment": "training the segmentation network",
    "evaluate": "judging the masks",
    "report": "writing the report",
}
"""What each stage does, in words."""


@dataclass
class Clock:
    """Reports the progress of all stages of a run as one: in a terminal and a notebook as a line that is kept up to
    date, elsewhere as log lines. It is a `Track`.

    planned: seconds that the stages to run take, in their order. stage: the one that runs, since `entered`. seen:
    planned and real seconds of the stages that are finished. logged: when the last line was logged. began: when the
    stage's first whole epoch began, which one that was, and its number of steps.
    """

    planned: dict[Stage, float] = field(default_factory=dict)
    stage: Stage | None = None
    entered: float = 0.0
    seen: tuple[float, float] = (0.0, 0.0)
    logged: float = 0.0
    began: tuple[float, int, int] | None = None

    def enter(self, stage: Stage) -> None:
        """Note that a stage begins, and the one before it has ended."""
        now = time.monotonic()
        if self.stage is not None and self.stage in self.planned:
            self.seen = (self.seen[0] + self.planned[self.stage], self.seen[1] + now - self.entered)
        self.stage, self.entered, self.logged, self.began = stage, now, now, None
        if not _is_live():
            log.info("%s", self.text())

    def left(self, loop: float = 0.0, whole: bool = False) -> float:
        """Return the seconds that all stages still take, if the current one takes at least `loop` more; with `whole`,
        just as much: its loop says more than what was planned."""
        pace = self.seen[1] / self.seen[0] if self.seen[0] > 0 and self.seen[1] > 5 else 1.0
        if self.stage is None:
            return pace * sum(self.planned.values())
        elapsed, planned = time.monotonic() - self.entered, pace * self.planned.get(self.stage, 0.0)
        later = sum(seconds for stage, seconds in self.planned.items() if _number(stage) > _number(self.stage))
        return (loop if whole else max(planned - elapsed, loop, 0.0)) + pace * later

    def text(self, loop: float = 0.0, whole: bool = False) -> str:
        """Return the line: stage 2 of 6, what it does, how long all stages still take."""
        if self.stage is None:
            return "reading the data"
        left = f", {in_words(self.left(loop, whole))} left in all" if self.planned else ""
        return f"stage {_number(self.stage)} of {len(STAGES)}, {DOING[self.stage]}{left}"

    def __call__(self, items: Iterable[T], title: str, total: int) -> Iterator[T]:
        """Pass items through; see `Track`."""
        return self._shown(items, title, total) if _is_live() else self._lines(items, title, total)

    def _shown(self, items: Iterable[T], title: str, total: int) -> Iterator[T]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=16), TextColumn("{task.description}"))
        started = self._begin(title, total)
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(self.text(), total=total)
            for done, item in enumerate(items, 1):
                yield item
                progress.update(task, completed=done, description=self.text(*self._rest(title, started, done / total)))

    def _lines(self, items: Iterable[T], title: str, total: int) -> Iterator[T]:
        started = self._begin(title, total)
        for done, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if now - self.logged >= _BETWEEN_LINES and done < total:
                self.logged = now
                log.info("%s (%s, %d of %d)", self.text(*self._rest(title, started, done / total)), title, done, total)

    def _begin(self, title: str, total: int) -> float:
        """Note that a loop begins, and return when; the epochs are timed from a whole one, not the rest of one that was
        interrupted."""
        now, epoch = time.monotonic(), _epoch(title)
        if epoch and (self.began is None or epoch[0] <= self.began[1] or total > self.began[2]):
            self.began = (now, epoch[0], total)
        return now

    def _rest(self, title: str, started: float, done: float) -> tuple[float, bool]:
        """Return the seconds that a loop, of which a share is done, still takes with the epochs after it; and whether
        that is all of the stage, and long enough is known of it."""
        now, epoch = time.monotonic(), _epoch(title)
        if epoch is None or self.began is None:
            return (now - started) / done * (1 - done), False
        since, first, _ = self.began
        elapsed, passed = now - since, epoch[0] - first + done
        return elapsed / passed * (epoch[1] - epoch[0] + 1 - done), self.stage == "train" and elapsed > _SURE


def _epoch(title: str) -> tuple[int, int] | None:
    """Return which epoch the title of a loop tells of, and how many there are: (2, 25) of "epoch 2/25"."""
    found = re.search(r"(\d+)/(\d+)$", title)
    return (int(found[1]), int(found[2])) if found else None


def _number(stage: Stage) -> int:
    return STAGES.index(stage) + 1


def _is_live() -> bool:
    """Tell whether a line can be kept up to date: in a terminal, or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or type(shell).__name__ == "ZMQInteractiveShell"
