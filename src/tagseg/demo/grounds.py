"""Draw the surroundings of the demo pictures: seven textured grounds, and clutter that belongs to no class."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image, ImageDraw

from tagseg.demo.paint import PAINTS, WHITE, Colour, Part, Points, Random, blob, ellipse, paints, stroke, tint

Canvas = Float[ndarray, "h w 3"]
Plane = Float[ndarray, "h w"]


def draw_ground(name: str, size: int, random: Random) -> Image.Image:
    """Draw the ground called `name` as an RGB picture, `size` pixels square."""
    canvas = GROUNDS[name](size, random)
    tone = random.uniform(0.8, 1.1) * random.uniform(0.9, 1.1, 3)
    return Image.fromarray(np.clip(canvas * tone, 0, 255).astype(np.uint8))


def smooth_noise(size: int, cells: tuple[int, int], random: Random) -> Plane:
    """Return smooth noise of about -1 to 1, interpolated from a grid of `cells` (down, across)."""
    coarse = Image.fromarray(random.uniform(-1, 1, (cells[0] + 1, cells[1] + 1)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _sky(size: int, random: Random) -> Canvas:
    noon, evening = [(92, 148, 214), (196, 222, 240)], [(96, 120, 190), (244, 196, 160)]
    top, low = np.array(noon if random.random() < 0.6 else evening)
    down = np.linspace(0, 1, size)[:, None, None]
    puffs = smooth_noise(size, (3, 3), random) + 0.6 * smooth_noise(size, (8, 6), random)
    puffs += 0.3 * smooth_noise(size, (20, 16), random)
    cloud = np.clip(puffs * 1.4 - 0.1, 0, 0.9)[..., None]
    blue = top * (1 - down) + low * down
    canvas: ndarray = blue * (1 - cloud) + np.array((250, 248, 246)) * cloud
    return canvas


def _water(size: int, random: Random) -> Canvas:
    deep = np.array([(40, 112, 160), (44, 136, 150), (52, 120, 132)][random.integers(3)])
    down = np.linspace(0, 1, size)[:, None]
    bend = smooth_noise(size, (5, 4), random)
    waves = np.sin(down * random.uniform(40, 70) + 5 * bend) * np.clip(smooth_noise(size, (9, 4), random) + 0.5, 0, 1)
    light = 1.15 - 0.35 * down + 0.08 * smooth_noise(size, (12, 12), random)
    canvas: ndarray = deep * light[..., None] + 34 * np.clip(waves, 0, 1)[..., None]
    return canvas


def _grass(size: int, random: Random) -> Canvas:
    green = tint((92, 138, 62), random.uniform(0.8, 1.1))
    picture = Image.new("RGB", (size, size), tint(green, 0.75))
    pen = ImageDraw.Draw(picture)
    for _ in range(420):
        x, y, lean = random.uniform(0, size), random.uniform(0, size * 1.1), random.normal(0, 0.04)
        length = random.uniform(0.05, 0.14)
        tip, width = (x + lean * size, y - length * size), 0.008 * size
        pen.polygon([(x - width, y), tip, (x + width, y)], fill=tint(green, random.uniform(0.65, 1.4)))
    return np.asarray(picture) * (1 + 0.15 * smooth_noise(size, (4, 4), random))[..., None]


def _wood(size: int, random: Random) -> Canvas:
    brown = np.array([(176, 126, 80), (150, 104, 66), (190, 156, 116)][random.integers(3)])
    planks = int(random.integers(3, 6))
    plank = np.arange(size) * planks // size
    across = np.linspace(0, 1, size)[:, None] + 0.02 * smooth_noise(size, (10, 3), random)
    shift = random.uniform(0, 9, planks)[plank][:, None]
    grain = np.sin(across * random.uniform(90, 140) + shift + 2.5 * smooth_noise(size, (6, 2), random))
    rough = 1 + 0.08 * grain + 0.08 * smooth_noise(size, (60, 4), random)
    joint = np.where(np.arange(size) * planks % size < planks * size * 0.012, 0.45, 1)
    canvas = brown * (rough * (joint * random.uniform(0.85, 1.1, planks)[plank])[:, None])[..., None]
    return canvas.transpose(1, 0, 2) if random.random() < 0.5 else canvas


def _leaves(size: int, random: Random) -> Canvas:
    pots: list[Colour] = [(150, 98, 52), (186, 124, 56), (122, 84, 54), (164, 72, 48), (120, 118, 62)]
    leaf = blob([(-1, 0), (-0.3, -0.45), (0.5, -0.35), (1.1, 0), (0.5, 0.35), (-0.3, 0.45)])
    rib = stroke([(-1.2, 0), (1, 0)], 0.09)
    return _scatter(size, random, (74, 56, 40), pots, 170, (0.05, 0.1), lambda: [(leaf, 1.0), (rib, 0.7)])


def _pebbles(size: int, random: Random) -> Canvas:
    pots: list[Colour] = [(158, 152, 144), (130, 124, 120), (176, 160, 138), (112, 116, 124), (190, 184, 174)]
    angle = np.arange(7) * 2 * np.pi / 7
    ring = np.stack([np.cos(angle), 0.75 * np.sin(angle)], axis=1)

    def pebble() -> list[tuple[Points, float]]:
        outline = blob(ring * random.uniform(0.8, 1.1, (7, 1)))
        return [(outline + 0.12, 0.5), (outline, 1.0), (ellipse(-0.2, -0.2, 0.4, 0.25), 1.12)]

    return _scatter(size, random, (84, 78, 72), pots, 210, (0.035, 0.075), pebble)


def _scatter(
    size: int,
    random: Random,
    under: Colour,
    pots: list[Colour],
    count: int,
    radii: tuple[float, float],
    draw: Callable[[], list[tuple[Points, float]]],
) -> Canvas:
    """Scatter `count` small things over the ground; `draw` returns outlines, each with a factor for its colour."""
    picture = Image.new("RGB", (size, size), under)
    pen = ImageDraw.Draw(picture)
    for _ in range(count):
        place, radius, turn = random.uniform(0, size, 2), size * random.uniform(*radii), random.uniform(0, 2 * np.pi)
        colour = tint(pots[random.integers(len(pots))], random.uniform(0.8, 1.15))
        rotation = radius * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        for outline, factor in draw():
            pen.polygon([tuple(corner) for corner in (outline @ rotation + place).tolist()], fill=tint(colour, factor))
    return np.asarray(picture) * (1 + 0.1 * smooth_noise(size, (5, 5), random))[..., None]


def _brick(size: int, random: Random) -> Canvas:
    clay: Colour = [(168, 86, 66), (186, 122, 90), (140, 110, 100)][random.integers(3)]
    picture = Image.new("RGB", (size, size), (196, 186, 172))
    pen = ImageDraw.Draw(picture)
    height = size / random.integers(7, 11)
    width, joint = height * 2.3, height * 0.12
    for row in range(int(size / height) + 1):
        for column in range(-1, int(size / width) + 2):
            left, top = (column + 0.5 * (row % 2)) * width, row * height
            pen.rectangle(
                (left, top, left + width - joint, top + height - joint), fill=tint(clay, random.uniform(0.75, 1.15))
            )
    rough = 1 + 0.1 * smooth_noise(size, (40, 40), random) + 0.1 * smooth_noise(size, (5, 5), random)
    return np.asarray(picture) * rough[..., None]


def draw_ball(random: Random) -> list[Part]:
    """Return a striped ball."""
    first, second = paints(random, 2)
    parts = [Part(ellipse(0, 0, 0.9, 0.9), first)]
    return parts + [
        Part(blob([(x * 0.3, -1), (x + 0.16, 0), (x * 0.3, 1), (x - 0.16, 0)]), second, inside=True)
        for x in (-0.55, 0.0, 0.55)
    ]


def draw_bubble(random: Random) -> list[Part]:
    """Return a pale bubble with a highlight."""
    tone = tint((176, 214, 226), random.uniform(0.85, 1.1))
    return [
        Part(ellipse(0, 0, 0.9, 0.9), tone),
        Part(ellipse(0, 0.05, 0.74, 0.74), tint(tone, 0.9)),
        Part(ellipse(-0.3, -0.35, 0.2, 0.14), WHITE),
    ]


def draw_cloud(random: Random) -> list[Part]:
    """Return a small cloud."""
    tone = tint(WHITE, random.uniform(0.88, 1.0))
    return [
        Part(ellipse(x, y, r, r * 0.8), tone)
        for x, y, r in ((-0.5, 0.1, 0.4), (0, -0.15, 0.5), (0.5, 0.1, 0.4), (0, 0.2, 0.5))
    ]


def draw_flower(random: Random) -> list[Part]:
    """Return a flower seen from above."""
    (petal,) = paints(random, 1)
    count = int(random.integers(5, 9))
    turns = np.arange(count) * 2 * np.pi / count
    parts = [Part(ellipse(0.55 * np.cos(t), 0.55 * np.sin(t), 0.4, 0.22, t), tint(petal, 1.15)) for t in turns]
    return [*parts, Part(ellipse(0, 0, 0.27, 0.27), (240, 190, 60))]


def draw_leaf(random: Random) -> list[Part]:
    """Return a leaf with veins."""
    green = PAINTS[int(random.choice([1, 2, 3, 3, 3, 8]))]
    vein = tint(green, 0.65)
    parts = [
        Part(blob([(-0.85, 0), (-0.4, -0.38), (0.2, -0.4), (0.98, 0), (0.2, 0.4), (-0.4, 0.38)]), tint(green, 0.9))
    ]
    parts += [
        Part(stroke([(x, 0), (x + 0.25, s * 0.35)], 0.035), vein, inside=True)
        for x in (-0.5, -0.15, 0.2)
        for s in (-1, 1)
    ]
    return [*parts, Part(stroke([(-0.99, 0.04), (0.9, 0)], 0.05), vein)]


def draw_stone(random: Random) -> list[Part]:
    """Return a pebble with a band or speckles."""
    grey = tint((150, 146, 140), random.uniform(0.6, 1.2))
    turns = np.arange(8) * np.pi / 4
    outline = blob(np.stack([np.cos(turns) * 0.9, np.sin(turns) * 0.62], axis=1) * random.uniform(0.8, 1.05, (8, 1)))
    return [
        Part(outline, grey),
        Part(
            stroke([(-1, random.uniform(-0.3, 0.3)), (1, random.uniform(-0.3, 0.3))], 0.12),
            tint(grey, 1.25),
            inside=True,
        ),
    ]


def draw_tuft(random: Random) -> list[Part]:
    """Return a tuft of grass."""
    green = tint(PAINTS[3], random.uniform(0.65, 1.05))
    parts = []
    for x in random.permutation(np.linspace(-0.5, 0.5, 6)):
        tip = (x * 1.7 + random.normal(0, 0.1), random.uniform(-0.95, -0.3))
        base = [(x * 0.5 - 0.09, 0.9), (x * 1.1 - 0.07, 0.1), tip, (x * 1.1 + 0.07, 0.1), (x * 0.5 + 0.09, 0.9)]
        parts.append(Part(np.array(base), tint(green, random.uniform(0.8, 1.2))))
    return parts


GROUNDS: dict[str, Callable[[int, Random], Canvas]] = {
    "sky": _sky,
    "grass": _grass,
    "water": _water,
    "wood": _wood,
    "leaves": _leaves,
    "pebbles": _pebbles,
    "brick": _brick,
}
"""The function that draws each ground, by name."""

CLUTTER: dict[str, Callable[[Random], list[Part]]] = {
    "ball": draw_ball,
    "bubble": draw_bubble,
    "cloud": draw_cloud,
    "flower": draw_flower,
    "leaf": draw_leaf,
    "stone": draw_stone,
    "tuft": draw_tuft,
}
"""The function that draws each thing that belongs to no class, by name."""
