"""Loss curves, laid out as coordinates for an SVG that the page's template draws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tagseg.run.history import EpochRow

WIDTH, HEIGHT = 380, 236
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 42
"""Margins around the plot, in the SVG's units."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in the SVG's units, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A curve: runs of points in the SVG's units (a missing value splits the curve), and its last value."""

    label: str
    runs: tuple[tuple[tuple[float, float], ...], ...]
    last: float


@dataclass(frozen=True)
class Chart:
    """A chart ready to draw: its curves and the ticks of both axes."""

    title: str
    lines: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def values(history: Sequence[EpochRow], key: str) -> list[float | None]:
    """Return one value per epoch; None where the training had no such figure."""
    return [getattr(epoch, key) for epoch in history]


def draw_chart(title: str, epochs: Sequence[int], series: Mapping[str, Sequence[float | None]]) -> Chart | None:
    """Return curves over epochs on a linear axis that includes 0; None if no series has a value."""
    known = [value for curve in series.values() for value in curve if value is not None]
    if not known:
        return None
    low, high = min(0.0, *known), max(0.0, *known)
    y_marks = nice_ticks(low, high)
    low, high = min(low, y_marks[0]), max(high, y_marks[-1])
    first, last = min(epochs), max(epochs)

    def x_at(epoch: int) -> float:
        share = 0.5 if first == last else (epoch - first) / (last - first)
        return round(LEFT + 10 + share * (WIDTH - LEFT - RIGHT - 20), 1)

    def y_at(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for label, curve in series.items():
        points = [None if v is None else (x_at(e), y_at(v)) for e, v in zip(epochs, curve, strict=True)]
        present = [value for value in curve if value is not None]
        if present:
            lines.append(Curve(label, _runs(points), present[-1]))
    step = math.ceil((last - first + 1) / 10)
    return Chart(
        title,
        tuple(lines),
        x_ticks=tuple(Tick(x_at(epoch), str(epoch)) for epoch in range(first, last + 1, step)),
        y_ticks=tuple(Tick(y_at(mark), f"{mark:g}") for mark in y_marks),
    )


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` round, evenly spaced numbers that cover the range from `low` to `high`."""
    span = high - low
    if span <= 0:
        high, span = low + 1, 1.0
    size = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 2.5, 5, 10, 20, 25):
        step = factor * size
        start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if stop - start < most:
            break
    return [round(index * step, 12) for index in range(start, stop + 1)]


def _runs(points: Sequence[tuple[float, float] | None]) -> tuple[tuple[tuple[float, float], ...], ...]:
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is not None:
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return tuple(tuple(run) for run in runs if run)
