"""The picture of an ablation as an SVG file: gains, changes per class, and the influence of the cut."""

from collections.abc import Sequence
from dataclasses import dataclass

from tagseg.report.charts import Tick, nice_ticks
from tagseg.report.render import templates
from tagseg.studies.ablation.arms import ARMS, Arm
from tagseg.studies.ablation.scores import BACKGROUND_CUTS
from tagseg.studies.ablation.table import SENSITIVITY, Ablation, Spread

WIDTH, LEFT, RIGHT = 760, 160, 90
"""Width of the picture, and the margins left and right of the plots, in the SVG's units."""

CURVES_HEIGHT = 190

NAME_LENGTH = 18
"""Longer class names are cut, so that they fit the left margin."""


@dataclass(frozen=True)
class Bar:
    """An arm's mean as a bar from the zero line, and its seeds as dots; x and y in the SVG's units."""

    arm: Arm
    y: float
    x: float
    width: float
    dots: tuple[float, ...]
    text: str


@dataclass(frozen=True)
class Bars:
    """Bars on a common axis, in groups with a label and the y of its middle."""

    title: str
    top: float
    bottom: float
    zero: float
    thickness: float
    groups: tuple[tuple[str, float], ...]
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Curves:
    """Each arm's mIoU over constant cuts, as points in the SVG's units."""

    title: str
    top: float
    bottom: float
    lines: tuple[tuple[Arm, tuple[tuple[float, float], ...]], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def draw_ablation(ablation: Ablation) -> str:
    """Return the picture as the text of an SVG file; panels without values are left out."""
    arms = tuple(arm for arm in ablation.arms if arm != "cam" and ablation.gain(arm).values)
    top, panels = 124.0, []
    gains = [(arm, [(arm, ablation.gain(arm))]) for arm in arms]
    title = "Gain over cam of the same seed, points of mIoU (bar: mean, dots: seeds)"
    changes = [
        (name, [(arm, gain) for arm in arms if (gain := ablation.gain(arm, i)).values])
        for i, name in enumerate(ablation.classes)
    ]
    for heading, groups, thickness in ((title, gains, 18.0), ("Change per class, points of IoU", changes, 8.0)):
        if arms:
            panels.append(_bars(heading, groups, top, thickness))
            top = panels[-1].bottom + 66
    curves = _curves(ablation, top + 10) if ablation.arms else None
    return (
        templates()
        .get_template("ablation.svg.j2")
        .render(
            width=WIDTH,
            height=(curves.bottom + 52 if curves else top),
            left=LEFT,
            right=WIDTH - RIGHT,
            arms=ablation.arms,
            all_arms=ARMS,
            images=ablation.images,
            missing=len(ablation.missing),
            finished=len(ablation.scores),
            panels=panels,
            curves=curves,
        )
    )


def _bars(title: str, groups: Sequence[tuple[str, Sequence[tuple[Arm, Spread]]]], top: float, thickness: float) -> Bars:
    known = [value for _, members in groups for _, spread in members for value in spread.values.values()]
    marks = nice_ticks(min(0.0, *known), max(0.0, *known), 8)

    def x_at(value: float) -> float:
        return round(LEFT + (value - marks[0]) / (marks[-1] - marks[0]) * (WIDTH - LEFT - RIGHT), 1)

    bars, labels, y = [], [], top + 8
    for label, members in groups:
        first = y
        for arm, spread in members:
            start, stop = sorted((x_at(0.0), x_at(spread.mean)))
            dots = tuple(x_at(value) for value in spread.values.values())
            bars.append(Bar(arm, y, start, round(stop - start, 1), dots, spread.text("+")))
            y += thickness + 2
        y = max(y, first + 12)
        labels.append((_shown(label), (first + y) / 2))
        y += 8
    ticks = tuple(Tick(x_at(mark), f"{mark:+g}" if mark else "0") for mark in marks)
    return Bars(title, top, y, x_at(0.0), thickness, tuple(labels), tuple(bars), ticks)


def _curves(ablation: Ablation, top: float) -> Curves:
    series = {arm: ablation.sensitivity(arm) for arm in ablation.arms}
    marks = nice_ticks(min(map(min, series.values())), max(map(max, series.values())))
    bottom = top + CURVES_HEIGHT

    def x_at(cut: float) -> float:
        return round(
            LEFT + (cut - BACKGROUND_CUTS[0]) / (BACKGROUND_CUTS[-1] - BACKGROUND_CUTS[0]) * (WIDTH - LEFT - RIGHT), 1
        )

    def y_at(value: float) -> float:
        return round(bottom - (value - marks[0]) / (marks[-1] - marks[0]) * CURVES_HEIGHT, 1)

    return Curves(
        f"{SENSITIVITY}: mIoU in per cent at constant cuts of the maps",
        top,
        bottom,
        tuple(
            (arm, tuple((x_at(cut), y_at(v)) for cut, v in zip(BACKGROUND_CUTS, line, strict=True)))
            for arm, line in series.items()
        ),
        x_ticks=tuple(Tick(x_at(cut), f"{cut:.1f}") for cut in BACKGROUND_CUTS),
        y_ticks=tuple(Tick(y_at(mark), f"{mark:g}") for mark in marks),
    )


def _shown(name: str) -> str:
    # XML allows no control characters, not even escaped.
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
