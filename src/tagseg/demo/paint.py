"""Paint a thing of the demo pictures: coloured outlines in a unit disc become a softly lit sticker.

Unit coordinates: x points right, y down; a thing fits into the circle of radius 1 around (0, 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Points = Float[ndarray, "_ 2"]
Coordinate = int | float
Random = np.random.Generator

DARK: Colour = (44, 36, 40)
WHITE: Colour = (250, 248, 240)
CREAM: Colour = (238, 222, 190)
PAINTS: tuple[Colour, ...] = (
    (212, 62, 52),
    (236, 134, 44),
    (242, 196, 66),
    (112, 164, 70),
    (52, 156, 150),
    (66, 110, 190),
    (136, 88, 172),
    (228, 122, 150),
    (150, 104, 68),
)
"""The colours of everything that is not pale or dark."""


@dataclass(frozen=True)
class Part:
    """One filled outline in unit coordinates; an `inside` part shows only where earlier parts were painted."""

    outline: Points
    colour: Colour
    inside: bool = False


def paint(
    parts: Sequence[Part], radius: float, turn: float, mirror: bool, random: Random
) -> tuple[Image.Image, Image.Image]:
    """Paint a thing lit from the upper left; return a square RGB picture and its "L" silhouette (0 or 255).

    `radius` is in pixels, `turn` in radians. Edges are hard: the caller paints large and reduces.
    """
    half = int(np.ceil(radius * 1.12)) + 1
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    flip = np.array([-1.0 if mirror else 1.0, 1.0])
    picture = Image.new("RGB", (2 * half, 2 * half))
    silhouette = Image.new("L", picture.size)
    pen, outline_pen = ImageDraw.Draw(picture), ImageDraw.Draw(silhouette)
    for part in parts:
        corners = [tuple(corner) for corner in ((part.outline * flip) @ rotation * radius + half).tolist()]
        if part.inside:
            cover = Image.new("L", picture.size)
            ImageDraw.Draw(cover).polygon(corners, fill=255)
            picture.paste(part.colour, mask=ImageChops.multiply(cover, silhouette))
        else:
            pen.polygon(corners, fill=part.colour)
            outline_pen.polygon(corners, fill=255)
    return _light(picture, silhouette, radius, random), silhouette


def _light(picture: Image.Image, silhouette: Image.Image, radius: float, random: Random) -> Image.Image:
    height = np.asarray(silhouette.filter(ImageFilter.GaussianBlur(radius * 0.14)), dtype=np.float32) / 255
    down, right = np.gradient(height)
    grain = random.standard_normal(height.shape, dtype=np.float32)
    light = 1 + 0.2 * radius * (down + right) + 0.05 * grain
    shaded = np.asarray(picture, dtype=np.float32) * np.clip(light, 0.55, 1.4)[..., None]
    return Image.fromarray(np.clip(shaded, 0, 255).astype(np.uint8))


def paints(random: Random, count: int, pots: Sequence[Colour] = PAINTS) -> list[Colour]:
    """Return `count` different colours of `pots`, each a little darker or lighter."""
    chosen = random.choice(len(pots), count, replace=False)
    return [tint(pots[int(i)], random.uniform(0.85, 1.12)) for i in chosen]


def tint(colour: Colour, factor: float) -> Colour:
    """Return the colour, made darker (factor below 1) or lighter."""
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return red, green, blue


def box(left: Coordinate, top: Coordinate, right: Coordinate, bottom: Coordinate) -> Points:
    """Return the outline of a rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=float)


def ellipse(x: Coordinate, y: Coordinate, across: Coordinate, down: Coordinate, turn: Coordinate = 0) -> Points:
    """Return the outline of an ellipse with the given half axes, turned by `turn` radians."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    a, b = across * np.cos(angle), down * np.sin(angle)
    return np.stack([x + a * np.cos(turn) - b * np.sin(turn), y + a * np.sin(turn) + b * np.cos(turn)], axis=1)


def arc(x: Coordinate, y: Coordinate, radius: float, width: float) -> Points:
    """Return the outline of a fish scale: a half ring open to the left."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 9)
    return stroke(np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1), width)


def stroke(line: Sequence[tuple[Coordinate, Coordinate]] | Points, width: float) -> Points:
    """Return the outline of a line of the given width."""
    points = np.asarray(line, dtype=float)
    along = np.gradient(points, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * width / 2
    return np.concatenate([points + across, (points - across)[::-1]])


def blob(corners: Sequence[tuple[Coordinate, Coordinate]] | Points) -> Points:
    """Return a smooth closed curve through the corners (uniform Catmull-Rom spline, 8 points per side)."""
    p1 = np.asarray(corners, dtype=float)
    p0, p2, p3 = np.roll(p1, 1, axis=0), np.roll(p1, -1, axis=0), np.roll(p1, -2, axis=0)
    t = (np.arange(8) / 8)[:, None, None]
    square, cube = 2 * p0 - 5 * p1 + 4 * p2 - p3, 3 * p1 - p0 - 3 * p2 + p3
    curve: ndarray = p1 + 0.5 * (t * (p2 - p0) + t**2 * square + t**3 * cube)
    return curve.transpose(1, 0, 2).reshape(-1, 2)


def mirrored(half: Sequence[tuple[Coordinate, Coordinate]]) -> list[tuple[Coordinate, Coordinate]]:
    """Return the corners of a left-right symmetric outline from those of its right half, listed from top to bottom."""
    return [*half, *((-x, y) for x, y in reversed(half) if x != 0)]
