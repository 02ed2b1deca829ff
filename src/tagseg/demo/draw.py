"""Draw the demo data set: a few hundred pictures with tags and exact masks, in tagseg's folder layout."""

import csv
import io
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageFilter

from tagseg.demo.grounds import CLUTTER, GROUNDS, draw_ground, smooth_noise
from tagseg.demo.paint import PAINTS, Part, Random, paint
from tagseg.demo.shapes import CLASSES, OWN_COLOURS
from tagseg.errors import DataError
from tagseg.run.lock import hold_folder, own_files
from tagseg.system.changes import changing, is_unsettled
from tagseg.system.files import writing
from tagseg.system.progress import Track, silent
from tagseg.system.records import Count, Positive, Record, read_record, write_record

EDITION = 2
"""Increased whenever the same parameters would give other pictures."""

FINE = 3
"""Pictures are painted this many times larger, then reduced; a mask pixel takes the majority of its fine pixels."""

MIN_VISIBLE = 0.01
"""Smallest share of the picture that the visible part of a tagged thing covers."""

HOMES = {
    "balloon": "sky",
    "butterfly": "grass",
    "fish": "water",
    "ladybird": "wood",
    "mushroom": "leaves",
    "snail": "brick",
}
"""The ground on which a class occurs most often, a temptation for class activation maps."""

COMPANIONS = {
    "balloon": "cloud",
    "butterfly": "flower",
    "fish": "bubble",
    "ladybird": "leaf",
    "mushroom": "tuft",
    "snail": "stone",
}
"""What often occurs next to a class without belonging to it."""

TURNS = {"butterfly": 3.2, "ladybird": 3.2, "fish": 0.6, "leaf": 3.2, "flower": 3.2, "ball": 3.2, "stone": 0.5}
"""Largest turn of a shape in either direction, in radians, if it is not 0.3."""

PALETTE = (0, 0, 0, 224, 80, 70, 240, 170, 60, 70, 130, 210, 140, 90, 180, 90, 170, 90, 60, 175, 175)
"""Red, green and blue of background and classes in the mask files."""


@dataclass(frozen=True)
class Thing:
    """A shape in its place: class id or 0, centre and radius as shares of the picture's side, turn in radians."""

    shape: str
    class_id: int
    x: float
    y: float
    radius: float
    turn: float
    mirror: bool


class DemoParameters(Record, frozen=True):
    """demo.json of a finished demo: what it was drawn with (see `draw_demo`)."""

    edition: Count
    train: Positive
    val: Count
    seed: Count
    side: Positive
    shared_colours: bool = True  # as in edition 1


def draw_demo(
    folder: Path,
    train: int = 260,
    val: int = 50,
    seed: int = 0,
    side: int = 128,
    shared_colours: bool = False,
    track: Track = silent,
) -> Path:
    """Draw the demo data set into `folder` and return the folder; a finished demo with these parameters is kept.

    Writes tags.csv, classes.txt, demo.json, images/NNNN.jpg (RGB, `side` pixels square) and masks/NNNN.png (palette, 0
    background, class ids 1..C). The same seed gives the same bytes. With `shared_colours` things of every class have
    all colours, so that no colour helps to tell them: a harder set.

    Raises:
        DataError: when the folder contains something else, or a parameter is out of range.
        WriteError: when the disk is full or the folder cannot be written to.
    """
    if train < len(CLASSES) or val < 0:
        raise DataError(
            f"demo: got {train} training and {val} validation images, expected at least {len(CLASSES)} and 0"
        )
    if seed < 0 or side < 64:
        raise DataError(f"demo: got seed {seed} and a side of {side} pixels, expected at least 0 and 64")
    parameters = DemoParameters(EDITION, train, val, seed, side, shared_colours)
    if _is_finished(folder, parameters):
        return folder
    with hold_folder(folder):
        if not _is_finished(folder, parameters):  # a killed command's images may be in place only now
            with writing(folder), changing(folder) as draft:
                _draw_all(draft.aside, parameters, track)
    return folder


def _draw_all(work: Path, parameters: DemoParameters, track: Track) -> None:
    train, val, seed = parameters.train, parameters.val, parameters.seed
    (work / "images").mkdir()
    (work / "masks").mkdir()
    rows = []
    for index in track(range(train + val), "drawing the demo", train + val):
        split, turn = ("train", index) if index < train else ("val", index - train)
        tags = choose_tags(turn, np.random.default_rng([seed, index]))
        name = f"{index + 1:04}"
        picture, mask = draw_scene(tags, parameters.side, (seed, index), parameters.shared_colours)
        _save(picture, work / "images" / f"{name}.jpg", quality=92, subsampling=0)
        palette_mask = Image.fromarray(mask)
        palette_mask.putpalette(PALETTE)
        _save(palette_mask, work / "masks" / f"{name}.png")
        rows.append((f"images/{name}.jpg", " ".join(tags), split))
    with (work / "tags.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "tags", "split"), *rows])
    (work / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8", newline="\n")
    write_record(work / "demo.json", parameters)


def _save(picture: Image.Image, path: Path, **options: int) -> None:
    """Write a picture; Pillow itself would leave half of a JPEG on a full disk and say nothing."""
    content = io.BytesIO()
    picture.save(content, Image.registered_extensions()[path.suffix], **options)
    path.write_bytes(content.getvalue())


def _is_finished(folder: Path, parameters: DemoParameters) -> bool:
    if not folder.exists() or is_unsettled(folder) or (folder.is_dir() and not own_files(folder)):
        return False
    try:
        found = read_record(folder / "demo.json", DemoParameters, "choose another folder", DataError)
    except DataError as error:
        raise DataError(f"{folder}: exists and is not a finished demo; choose another folder") from error
    if found != parameters:
        raise DataError(f"{folder}: was drawn with {_named(found)}, not {_named(parameters)}; choose another folder")
    return True


def choose_tags(turn: int, random: Random) -> tuple[str, ...]:
    """Return one to three tags in the order of the classes; `turn` cycles the first choice through all classes."""
    names = list(CLASSES)
    number = int(random.choice([1, 2, 3], p=[0.45, 0.37, 0.18]))
    first = names.pop(turn % len(names))
    return tuple(sorted([first, *random.permutation(names)[: number - 1].tolist()]))


def draw_scene(
    tags: tuple[str, ...], side: int, seeds: tuple[int, ...], shared_colours: bool = False
) -> tuple[Image.Image, UInt8[ndarray, "h w"]]:
    """Draw a picture of the tagged things and its mask of class ids; repeat until every tagged thing is visible."""
    for attempt in count():
        random = np.random.default_rng([*seeds, attempt, 1])
        things = plan_scene(tags, random)
        picture, owners = paint_scene(things, choose_ground(tags, random), side * FINE, random, shared_colours)
        visible = np.bincount(owners.ravel(), minlength=len(things) + 1)[1:] / owners.size
        if all(share >= MIN_VISIBLE for share, thing in zip(visible, things, strict=True) if thing.class_id):
            break
    ids = np.array([0, *(thing.class_id for thing in things)], dtype=np.uint8)
    return finish_picture(picture, side, random), majority(ids[owners], side)


def choose_ground(tags: tuple[str, ...], random: Random) -> str:
    """Return the home of one of the tags (6 times in 10), or any ground."""
    if random.random() < 0.6:
        return HOMES[str(random.choice(tags))]
    return str(random.choice(list(GROUNDS)))


def plan_scene(tags: tuple[str, ...], random: Random) -> list[Thing]:
    """Return the things to paint, from back to front: tagged things, their companions, and clutter at any depth."""
    most = {1: 3, 2: 2, 3: 1}[len(tags)]
    names = [name for name in tags for _ in range(random.integers(1, most + 1))]
    room = {1: 0.38, 2: 0.31, 3: 0.26, 4: 0.23}[len(names)]
    placed: list[Thing] = []
    layers: list[tuple[float, Thing]] = []
    for name in random.permutation(names).tolist():
        radius = room * random.uniform(0.65, 1.0)
        spots = random.uniform(0.4 * radius, 1 - 0.4 * radius, (6, 2))
        x, y = max(spots.tolist(), key=lambda spot: _clearance(spot, radius, placed))
        placed.append(_thing(name, x, y, radius, random))
        layers.append((random.uniform(0.5, 0.8), placed[-1]))
        for _ in range(random.integers(0, 4)):
            angle, away = random.uniform(0, 2 * np.pi), radius * random.uniform(0.7, 1.3)
            left, top = x + away * np.cos(angle), y + away * np.sin(angle)
            companion = _thing(COMPANIONS[name], left, top, random.uniform(0.05, 0.11), random)
            layers.append((random.uniform(0.2, 1.0), companion))
    for _ in range(random.integers(3, 9)):
        x, y = random.uniform(0, 1, 2).tolist()
        clutter = _thing(str(random.choice(list(CLUTTER))), x, y, random.uniform(0.05, 0.12), random)
        layers.append((random.uniform(0.0, 0.9), clutter))
    return [thing for _, thing in sorted(layers, key=lambda layer: layer[0])]


def _clearance(spot: list[float], radius: float, placed: list[Thing]) -> float:
    return min((float(np.hypot(spot[0] - o.x, spot[1] - o.y)) - radius - o.radius for o in placed), default=0.0)


def _thing(shape: str, x: float, y: float, radius: float, random: Random) -> Thing:
    class_id = list(CLASSES).index(shape) + 1 if shape in CLASSES else 0
    most = TURNS.get(shape, 0.3)
    return Thing(shape, class_id, x, y, radius, random.uniform(-most, most), bool(random.random() < 0.5))


def paint_scene(
    things: list[Thing], ground: str, size: int, random: Random, shared_colours: bool = False
) -> tuple[Image.Image, UInt8[ndarray, "size size"]]:
    """Paint things with soft shadows on a ground; also return the number of the top thing per pixel (0: ground)."""
    picture = draw_ground(ground, size, random)
    owners = Image.new("L", (size, size))
    for number, thing in enumerate(things, start=1):
        sticker, silhouette = paint(
            _parts(thing.shape, random, shared_colours), thing.radius * size, thing.turn, thing.mirror, random
        )
        left, top = round(thing.x * size - sticker.width / 2), round(thing.y * size - sticker.height / 2)
        soft = thing.radius * size * 0.1
        shadow = silhouette.filter(ImageFilter.GaussianBlur(soft)).point(lambda value: value * 0.4)
        picture.paste((24, 22, 30), (left + round(soft), top + round(soft * 1.5)), shadow)
        picture.paste(sticker, (left, top), silhouette)
        owners.paste(number, (left, top), silhouette)
    return picture, np.asarray(owners)


def _parts(shape: str, random: Random, shared_colours: bool) -> list[Part]:
    if shape not in CLASSES:
        return CLUTTER[shape](random)
    return CLASSES[shape](random, PAINTS if shared_colours else OWN_COLOURS[shape])


def finish_picture(picture: Image.Image, side: int, random: Random) -> Image.Image:
    """Reduce a fine picture to `side` pixels, and add uneven light and some noise."""
    small = np.asarray(picture.reduce(picture.width // side), dtype=np.float32)
    light = 1 + 0.16 * smooth_noise(side, (1, 1), random) + random.uniform(-0.08, 0.08)
    grainy = small * light[..., None] + random.normal(0, random.uniform(1, 5), small.shape)
    return Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8))


def majority(fine: UInt8[ndarray, "size size"], side: int) -> UInt8[ndarray, "h w"]:
    """Reduce a fine mask to `side` pixels; each takes its most frequent id (of equally frequent ones the lowest)."""
    factor = len(fine) // side
    ids = np.unique(fine)
    votes = [(fine == i).reshape(side, factor, side, factor).sum(axis=(1, 3)) for i in ids]
    coarse: ndarray = ids[np.argmax(votes, axis=0)]
    return coarse


def _named(parameters: DemoParameters) -> str:
    return ", ".join(f"{name} {getattr(parameters, name)}" for name in parameters.__struct_fields__)
