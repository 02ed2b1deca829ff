"""The report's rows of pictures: photos as JPEG, maps and masks as transparent PNG, all as data URIs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from tagseg.data.data_file import DataFile, ImageRow
from tagseg.data.images import read_image, read_mask_file, reduced_size
from tagseg.data.read import read_dataset
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.data.true_masks import load_mask
from tagseg.errors import RunError
from tagseg.evaluate.evaluate import evenly_spaced
from tagseg.masks.map_files import read_maps
from tagseg.masks.palette import shown_colours
from tagseg.report.overlay import data_uri, draw_mask
from tagseg.run.folder import Run
from tagseg.system.progress import Track

PICTURE_SIDE = 480
"""Long side of a picture in the report, in pixels."""

MAP_SIDE = 160
"""Long side of a map, in pixels; maps are smooth, and the browser enlarges them smoothly."""

FULL_SIZE_ROWS = 60
"""With more rows than this, pictures are smaller, so that the page stays below about 8 MB."""

PICTURE_COLUMNS = {
    "train": ("image", "map", "pseudo-mask", "prediction", "true mask"),
    "val": ("image", "prediction", "true mask"),
}


@dataclass(frozen=True)
class Picture:
    """One cell of a row: its column, a description, and the data URI of the overlay on the photo ("" for none)."""

    column: str
    description: str
    overlay: str


@dataclass(frozen=True)
class PictureRow:
    """The pictures of one image, one per column (None where there is none); width and height in pixels."""

    name: str
    tags: tuple[int, ...]
    photo: str
    width: int
    height: int
    pictures: tuple[Picture | None, ...]


@dataclass(frozen=True)
class Gallery:
    """The rows of one split, the columns that at least one row fills, and how the rows were chosen."""

    columns: tuple[str, ...]
    rows: tuple[PictureRow, ...]
    choice: str


def draw_galleries(run: Run, data: DataFile, track: Track) -> dict[str, Gallery]:
    """Return the rows of pictures of the training and validation images ("train", "val").

    Raises:
        DataError: when an image or a true mask cannot be read.
        RunError: when the data folder no longer has an image of the run.
    """
    settings = run.settings()
    count = settings.report.examples
    chosen = {"train": _choose(run, data, "train", count), "val": _choose(run, data, "val", (count + 1) // 2)}
    images = [row for rows, _ in chosen.values() for row in rows]
    # The data folder is read again only for true masks; otherwise the report needs just the images.
    dataset = read_dataset(run.data_root(), settings.data, settings.cache) if any(row.mask for row in images) else None
    samples = {sample.id: sample for sample in dataset.samples} if dataset else {}
    side = round(PICTURE_SIDE * min(1.0, (FULL_SIZE_ROWS / max(len(images), 1)) ** 0.5))
    rows: dict[str, list[PictureRow]] = {"train": [], "val": []}
    for row in track(images, "drawing the report", len(images)):
        truth = _truth(row, samples, dataset) if dataset and row.mask else None
        photo = read_image(Path(row.image), settings.data.max_megapixels)
        rows[row.split].append(_row(run, row, photo, truth, data.classes, side))
    return {split: _gallery(split, drawn, chosen[split][1]) for split, drawn in rows.items()}


def describe_mask(mask: UInt8[np.ndarray, "h w"], classes: Sequence[str]) -> str:
    """Return a description of a mask: the share of pixels of each class."""
    ids, counts = np.unique(mask, return_counts=True)
    parts = []
    for index, count in sorted(zip(ids.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]):
        name = (
            "unsure" if index == VOID else (["background", *classes][index] if index <= len(classes) else f"id {index}")
        )
        parts.append(f"{name} {100 * count / mask.size:.0f}%")
    return ", ".join(parts)


def mask_overlay(mask: UInt8[np.ndarray, "h w"], width: int, height: int) -> str:
    """Return a mask as a PNG data URI of the given size: class colours, clear background, striped unsure pixels."""
    return data_uri(draw_mask(mask, width, height), "png", transparency=0, optimize=True)


def map_overlay(maps: UInt8[np.ndarray, "k h w"], classes: Integer[np.ndarray, "k"], width: int, height: int) -> str:
    """Return maps (0..255 of the peak) as one PNG data URI: the colour of the highest map, its value as opacity."""
    resized = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR)) for one in maps]
    stack = np.stack(resized)
    colours = np.array(shown_colours(255), dtype=np.uint8)[classes]
    picture = np.concatenate([colours[stack.argmax(0)], stack.max(0)[:, :, None]], axis=2)
    return data_uri(Image.fromarray(picture), "png", optimize=True)


def _choose(run: Run, data: DataFile, split: str, count: int) -> tuple[list[ImageRow], str]:
    images = [row for row in data.samples if row.split == split]
    noun = "training images" if split == "train" else "validation images"
    predicted = [row for row in images if _file(run.predictions, row, ".png").exists()]
    masked = [row for row in images if row.mask]
    # The evaluation predicts evenly spaced images too, so an even choice among them is even over the whole list.
    chosen = evenly_spaced(predicted or masked or images, count)
    pool = f"the {noun} that have true masks" if chosen and all(row.mask for row in chosen) else f"all {noun}"
    rule = (
        f"{len(chosen)} of {len(images):,} {noun}, evenly spaced over the list of {pool} and not selected by quality."
    )
    return chosen, rule


def _truth(row: ImageRow, samples: dict[str, Sample], dataset: Dataset) -> UInt8[np.ndarray, "h w"]:
    if row.id not in samples:
        raise RunError(f"{dataset.root}: no longer has the image {row.id}, which this run was made from")
    return load_mask(samples[row.id], dataset, size=row.size)


def _row(
    run: Run,
    row: ImageRow,
    photo: Image.Image,
    truth: UInt8[np.ndarray, "h w"] | None,
    classes: Sequence[str],
    side: int,
) -> PictureRow:
    width, height = reduced_size(photo.size, side)
    photo = photo.resize((width, height), Image.Resampling.LANCZOS)

    def masked(column: str, mask: UInt8[np.ndarray, "h w"] | None) -> Picture | None:
        if mask is None:
            return None
        text = f"{column.capitalize()} of {row.id}: {describe_mask(mask, classes)}"
        return Picture(column, text, mask_overlay(mask, width, height))

    pictures = {
        "image": Picture("image", f"Image {row.id}", ""),
        "map": _map_picture(_file(run.maps, row, ".npz"), row, classes, (width, height)),
        "pseudo-mask": masked("pseudo-mask", _mask(_file(run.final().masks, row, ".png"))),
        "prediction": masked("prediction", _mask(_file(run.predictions, row, ".png"))),
        "true mask": masked("true mask", truth),
    }
    columns = PICTURE_COLUMNS[row.split]
    return PictureRow(
        row.id, row.tags, data_uri(photo, "jpeg", quality=80), width, height, tuple(map(pictures.get, columns))
    )


def _map_picture(path: Path, row: ImageRow, classes: Sequence[str], size: tuple[int, int]) -> Picture | None:
    if not path.exists():
        return None
    maps, found = read_maps(path)
    if not found:
        return None
    if max(found) > len(classes):
        raise RunError(f"{path}: has a map of class {max(found)}, expected at most {len(classes)}")
    ids = np.array(found)
    width, height = reduced_size(size, MAP_SIDE)
    names = ", ".join(classes[index - 1] for index in ids)
    return Picture("map", f"Map of {row.id}: {names}", map_overlay(maps, ids, width, height))


def _gallery(split: str, rows: Sequence[PictureRow], choice: str) -> Gallery:
    filled = [any(row.pictures[index] for row in rows) for index in range(len(PICTURE_COLUMNS[split]))]
    kept = [index for index, full in enumerate(filled) if full]
    trimmed = [
        PictureRow(row.name, row.tags, row.photo, row.width, row.height, tuple(row.pictures[index] for index in kept))
        for row in rows
    ]
    return Gallery(tuple(PICTURE_COLUMNS[split][index] for index in kept), tuple(trimmed), choice)


def _file(folder: Path, row: ImageRow, suffix: str) -> Path:
    return folder / f"{row.id}{suffix}"


def _mask(path: Path) -> UInt8[np.ndarray, "h w"] | None:
    return read_mask_file(path) if path.exists() else None
