"""Draw the six classes of the demo pictures as coloured outlines.

Unit coordinates: x points right, y down; a thing fits into the circle of radius 1 around (0, 0).
"""

from collections.abc import Callable, Sequence

import numpy as np

from tagseg.demo.paint import (
    CREAM,
    DARK,
    PAINTS,
    WHITE,
    Colour,
    Part,
    Random,
    arc,
    blob,
    box,
    ellipse,
    mirrored,
    paints,
    stroke,
    tint,
)


def draw_balloon(random: Random, pots: Sequence[Colour]) -> list[Part]:
    """Return a hot-air balloon: striped envelope, ropes, basket."""
    first, second = paints(random, 2, pots)
    envelope = blob(mirrored([(0, -1), (0.5, -0.85), (0.72, -0.42), (0.56, 0.05), (0.2, 0.48)]))
    parts = [Part(stroke([(x, 0.4), (0.6 * x, 0.8)], 0.035), DARK) for x in (-0.2, 0.2)]
    parts.append(Part(envelope, first))
    for x in random.permutation([-0.48, 0.0, 0.48])[: random.integers(2, 4)]:
        right, left = [(x + 0.13, -0.4), (x * 0.35 + 0.05, 0.5)], [(x * 0.35 - 0.05, 0.5), (x - 0.13, -0.4)]
        parts.append(Part(blob([(x * 0.2, -1), *right, *left]), second, inside=True))
    parts.append(Part(box(-0.8, -0.32, 0.8, -0.2), tint(second, 0.75), inside=True))
    basket = (166, 118, 70)
    parts.append(Part(box(-0.17, 0.72, 0.17, 0.99), basket))
    parts += [Part(box(-0.17, y, 0.17, y + 0.035), tint(basket, 0.7)) for y in (0.78, 0.86, 0.94)]
    return parts


def draw_butterfly(random: Random, pots: Sequence[Colour]) -> list[Part]:
    """Return a butterfly seen from above: four wings with borders and eye spots, a thin body, feelers."""
    wing, border, spot = paints(random, 3, pots)
    border = tint(border, 0.55)
    upper = [(0.05, -0.1), (0.3, -0.62), (0.8, -0.8), (0.95, -0.5), (0.72, -0.05), (0.3, 0.08)]
    lower = [(0.05, 0.05), (0.45, 0.08), (0.72, 0.3), (0.62, 0.68), (0.36, 0.78), (0.12, 0.45)]
    parts = []
    for side in (-1, 1):
        flip = np.array([side, 1])
        for outline, middle in ((lower, (0.42, 0.38)), (upper, (0.52, -0.38))):
            whole = blob(outline)
            parts.append(Part(whole * flip, border))
            parts.append(Part(((whole - middle) * 0.78 + middle) * flip, wing))
        parts.append(Part(ellipse(0.64 * side, -0.5, 0.13, 0.13), WHITE))
        parts.append(Part(ellipse(0.64 * side, -0.5, 0.075, 0.075), DARK))
        parts.append(Part(ellipse(0.46 * side, 0.45, 0.12, 0.12), spot))
        parts += [Part(stroke([(0.07 * side, 0), (x * side, y)], 0.025), border) for x, y in ((0.5, -0.15), (0.4, 0.2))]
        parts.append(Part(stroke([(0, -0.4), (0.12 * side, -0.7), (0.26 * side, -0.86)], 0.035), DARK))
    parts.append(Part(ellipse(0, 0.02, 0.085, 0.5), DARK))
    return parts


def draw_fish(random: Random, pots: Sequence[Colour]) -> list[Part]:
    """Return a fish swimming to the left: body with bars or scales, fins, tail, big eye."""
    body, bars = paints(random, 2, pots)
    fin = tint(bars, 0.85)
    parts = [
        Part(blob([(0.45, 0), (0.75, -0.32), (0.99, -0.42), (0.88, 0), (0.99, 0.42), (0.75, 0.32)]), fin),
        Part(blob([(-0.25, -0.35), (0.0, -0.68), (0.38, -0.62), (0.42, -0.25)]), fin),
        Part(blob([(0.0, 0.4), (0.12, 0.66), (0.32, 0.56), (0.3, 0.3)]), fin),
    ]
    back = [(-0.95, 0.0), (-0.7, -0.3), (-0.2, -0.46), (0.3, -0.3), (0.6, -0.1)]
    belly = [(x, -y) for x, y in reversed(back[1:])]
    parts.append(Part(blob(back + belly), body))
    if random.random() < 0.5:
        parts += [
            Part(blob([(x, -0.42), (x + 0.14, -0.2), (x + 0.14, 0.2), (x, 0.42), (x - 0.02, 0)]), bars)
            for x in (-0.3, 0.02)
        ]
    else:
        grid = [(-0.3 + 0.17 * i, -0.26 + 0.17 * j + 0.085 * (i % 2)) for i in range(5) for j in range(4)]
        grid = [(x, y) for x, y in grid if abs(y) < 0.34 - 0.3 * max(x, 0)]
        parts += [Part(arc(x, y, 0.075, 0.03), tint(bars, 0.9)) for x, y in grid]
    parts.append(Part(blob([(-0.12, 0.02), (0.16, -0.02), (0.2, 0.2), (0.0, 0.16)]), tint(fin, 0.8)))
    parts.append(Part(ellipse(-0.62, -0.1, 0.15, 0.15), WHITE))
    parts.append(Part(ellipse(-0.65, -0.1, 0.08, 0.08), DARK))
    parts.append(Part(stroke([(-0.92, 0.08), (-0.8, 0.14), (-0.7, 0.13)], 0.035), tint(body, 0.5)))
    return parts


def draw_ladybird(random: Random, pots: Sequence[Colour]) -> list[Part]:
    """Return a ladybird seen from above, head up: wing cases with spots, dark head with white cheeks, legs."""
    (shell,) = paints(random, 1, pots)
    parts = [
        Part(stroke([(0, y), (s * 0.75, y + t), (s * 0.93, y + 2 * t)], 0.07), DARK)
        for s in (-1, 1)
        for y, t in ((-0.2, -0.1), (0.12, 0.03), (0.4, 0.13))
    ]
    parts += [Part(stroke([(0, -0.7), (s * 0.2, -0.9), (s * 0.34, -0.93)], 0.045), DARK) for s in (-1, 1)]
    parts.append(Part(ellipse(0, -0.58, 0.42, 0.32), DARK))
    parts += [Part(ellipse(s * 0.24, -0.66, 0.12, 0.1), WHITE) for s in (-1, 1)]
    parts.append(Part(ellipse(0, 0.16, 0.74, 0.78), shell))
    spots = [(0.34, -0.22), (0.48, 0.2), (0.24, 0.56)]
    radius = random.uniform(0.11, 0.18)
    parts += [Part(ellipse(s * x, y, radius, radius), DARK) for s in (-1, 1) for x, y in spots]
    parts.append(Part(stroke([(0, -0.62), (0, 0.94)], 0.05), DARK))
    return parts


def draw_mushroom(random: Random, pots: Sequence[Colour]) -> list[Part]:
    """Return a toadstool: domed cap with spots, gills, pale stem with a ring."""
    cap, spot = paints(random, 2, pots)
    spot = WHITE if random.random() < 0.6 else spot
    stem = tint(CREAM, random.uniform(0.85, 1.0))
    width = random.uniform(0.14, 0.24)
    foot = mirrored([(width, -0.1), (0.9 * width, 0.5), (1.5 * width, 0.92)])
    parts = [Part(blob(foot), stem), Part(ellipse(0, -0.02, 0.78, 0.19), tint(stem, 0.72))]
    gills = [stroke([(x * 0.3, -0.05), (x, 0.06)], 0.025) for x in np.linspace(-0.6, 0.6, 9)]
    parts += [Part(gill, tint(stem, 0.55), inside=True) for gill in gills]
    ring = mirrored([(0, 0.2), (1.3 * width, 0.28), (1.5 * width, 0.4), (0, 0.36)])
    parts.append(Part(blob(ring), tint(stem, 0.9)))
    dome = mirrored([(0, -0.92), (0.4, -0.82), (0.8, -0.45), (0.92, 0.0), (0.5, -0.08), (0, -0.11)])
    parts.append(Part(blob(dome), cap))
    spots = [(-0.5, -0.3, 0.14), (0.02, -0.42, 0.17), (0.5, -0.28, 0.13), (-0.24, -0.68, 0.1), (0.3, -0.66, 0.11)]
    for x, y, radius in spots:
        x, y = np.array([x, y]) + random.normal(0, 0.04, 2)
        parts.append(Part(ellipse(x, y, radius * random.uniform(0.8, 1.2), radius), spot))
    return parts


def draw_snail(random: Random, pots: Sequence[Colour]) -> list[Part]:
    """Return a snail creeping to the left: spiral shell, soft body, eyes on stalks."""
    shell, swirl = paints(random, 2, pots)
    body = tint(paints(random, 1, pots)[0], 0.85) if random.random() < 0.5 else tint(CREAM, 0.85)
    head, back = [(-0.84, 0.66), (-0.88, 0.3), (-0.68, 0.08), (-0.42, 0.3)], [(0.2, 0.5), (0.98, 0.74)]
    parts = [Part(stroke([(-0.62, 0.3), (x, -0.32)], 0.07), body) for x in (-0.86, -0.58)]
    parts.append(Part(blob([*head, *back, (0.4, 0.82), (-0.6, 0.82)]), body))
    for x in (-0.86, -0.58):
        parts += [Part(ellipse(x, -0.36, 0.09, 0.09), WHITE), Part(ellipse(x - 0.02, -0.36, 0.05, 0.05), DARK)]
    parts.append(Part(ellipse(0.2, 0.06, 0.64, 0.6), shell))
    turn = np.linspace(0, 5 * np.pi, 60)
    radius = 0.06 + 0.5 * turn / turn[-1]
    spiral = np.stack([0.2 + radius * np.cos(turn + 0.5), 0.06 + radius * np.sin(turn + 0.5) * 0.94], axis=1)
    parts.append(Part(stroke(spiral, 0.1), swirl, inside=True))
    parts.append(Part(stroke([(-0.85, 0.5), (-0.78, 0.56), (-0.7, 0.54)], 0.04), tint(body, 0.5)))
    return parts


CLASSES: dict[str, Callable[[Random, Sequence[Colour]], list[Part]]] = {
    "balloon": draw_balloon,
    "butterfly": draw_butterfly,
    "fish": draw_fish,
    "ladybird": draw_ladybird,
    "mushroom": draw_mushroom,
    "snail": draw_snail,
}
"""The function that draws each class in some of the colours given, by tag, in the order of the class ids 1..C."""

_RED, _ORANGE, _YELLOW, _GREEN, _TEAL, _BLUE, _PURPLE, _PINK, _BROWN = PAINTS

OWN_COLOURS: dict[str, tuple[Colour, ...]] = {
    "balloon": (_YELLOW, _PINK, _TEAL),
    "butterfly": (_PURPLE, _BLUE, _PINK),
    "fish": (_ORANGE, _BLUE, _TEAL),
    "ladybird": (_RED, _ORANGE),
    "mushroom": (_RED, _PURPLE, _PINK),
    "snail": (_GREEN, _BROWN, _YELLOW),
}
"""What colours a class has where classes do not share all of them, so that fewer images teach what it looks like; all
but the snail's green and brown belong to several classes."""
