"""Ultralytics' layouts: YOLO's labels, one polygon per line of a text file, and masks for semantic segmentation."""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from tagseg.errors import DataError
from tagseg.export.masks import MaskedImage, MaskSet, read_mask
from tagseg.export.outlines import polygon
from tagseg.export.regions import regions
from tagseg.masks.mask_files import write_mask
from tagseg.settings.export import ExportSettings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track

_INSIDE = 0.25
"""Position of a point inside its pixel: readers that truncate and readers that round both arrive at this pixel."""


def write_yolo(masks: MaskSet, folder: Path, settings: ExportSettings, track: Track) -> None:
    """Write `labels/SUBSET/ID.txt` and data.yaml; YOLO's class 0 is class id 1.

    Each line is a connected part: `class x y x y ...` through its outermost pixels, as shares of width and height. YOLO
    has one polygon per object, so holes are joined to the outline by a line there and back.

    Raises:
        DataError: when a mask cannot be read, or YAML cannot hold a class name.
    """
    write_atomically(folder / "data.yaml", data_yaml(masks))
    for image in track(masks.images, "export", len(masks.images)):
        lines = [
            " ".join([str(region.class_id - 1), *_shares(part.pixels(), part.box()[:2], image, settings.tolerance)])
            for region in regions(read_mask(masks, image))
            for part in region.parts()
        ]
        write_atomically(folder / _beside(masks, image, "labels", ".txt"), "".join(f"{line}\n" for line in lines))


def write_yolo_semantic(masks: MaskSet, folder: Path, settings: ExportSettings, track: Track) -> None:
    """Write `masks/SUBSET/ID.png`, with class ids and 255 for void pixels, and data.yaml with `masks_dir`.

    Ultralytics' semantic segmentation reads them as they are.

    Raises:
        DataError: when a mask cannot be read, or YAML cannot hold a class name.
    """
    text = data_yaml(replace(masks, classes=("background", *masks.classes)))
    write_atomically(folder / "data.yaml", text.replace("names:\n", "masks_dir: masks\nnames:\n", 1))
    for image in track(masks.images, "export", len(masks.images)):
        write_mask(folder / _beside(masks, image, "masks", ".png"), read_mask(masks, image))


def _beside(masks: MaskSet, image: MaskedImage, folder: str, suffix: str) -> Path:
    """Return where readers look for the labels of an image: `folder` takes the place of the last folder `images`."""
    before, _, after = f"/images/{masks.subset}/{image.id}".rpartition("/images/")
    return Path(f"{before}/{folder}/{after}{suffix}".removeprefix("/"))


def yolo_image(masks: MaskSet, image: MaskedImage) -> Path:
    """Return an image's path, relative to the export.

    Readers find labels by the image's name without its suffix, so images that differ only in suffix get new names.
    """
    return Path("images", masks.subset, image.id + PurePosixPath(image.name).suffix)


def data_yaml(masks: MaskSet) -> str:
    """Return the text of data.yaml; only one set of images is exported, so train and val name the same folder."""
    names = "".join(f"  {i}: {_quoted(name)}\n" for i, name in enumerate(masks.classes))
    folder = f"images/{masks.subset}"
    return (
        "# train and val are the same images: replace val with other images before you trust any score.\n"
        f"train: {folder}\nval: {folder}\nnames:\n{names}"
    )


def _shares(pixels: object, corner: tuple[int, int], image: MaskedImage, tolerance: float) -> list[str]:
    points = polygon(pixels, tolerance, "centres") + corner  # type: ignore[arg-type]
    height, width = image.size
    # Readers require three points, even for a single pixel or a straight line.
    points = points if len(points) > 2 else points[[0, -1, -1]]
    return [f"{value:.7g}" for value in ((points + _INSIDE) / (width, height)).ravel().tolist()]


def _quoted(name: str) -> str:
    """Return a text in YAML's double quotes, so that every YAML reader returns it unchanged."""
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise DataError(f"class {name!r}: not valid Unicode, expected a name without lone surrogates")
    escaped = (char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08X}" for char in name)
    return f'"{"".join(escaped)}"'
