"""YOLO's segmentation labels: a text file an image, a polygon a line."""

from pathlib import Path, PurePosixPath

from tagseg.errors import DataError
from tagseg.export.masks import MaskedImage, MaskSet, read_mask
from tagseg.export.outlines import polygon
from tagseg.export.regions import regions
from tagseg.settings.export import ExportSettings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track

_INSIDE = 0.25
"""Where in its pixel a point lies: readers that cut off and readers that round both arrive at the pixel."""


def write_yolo(masks: MaskSet, folder: Path, settings: ExportSettings, track: Track) -> None:
    """Write `labels/SUBSET/ID.txt` and data.yaml, where class 0 is the first.

    A line is a connected part: `class x y x y ...` along its outermost pixels, in shares of width and height. Holes are
    joined to the outline by a line walked there and back, as YOLO has one polygon an object.

    Raises:
        DataError: when a mask cannot be read, or a class name cannot stand in YAML.
    """
    write_atomically(folder / "data.yaml", data_yaml(masks))
    for image in track(masks.images, "export", len(masks.images)):
        lines = [
            " ".join([str(region.class_id - 1), *_shares(part.pixels(), part.box()[:2], image, settings.tolerance)])
            for region in regions(read_mask(masks, image))
            for part in region.parts()
        ]
        write_atomically(folder / "labels" / masks.subset / f"{image.id}.txt", "".join(f"{line}\n" for line in lines))


def yolo_image(masks: MaskSet, image: MaskedImage) -> Path:
    """Return where in the export an image lies: readers find its labels by its name without suffix, so that images
    which differ in suffix alone need names of their own."""
    return Path("images", masks.subset, image.id + PurePosixPath(image.name).suffix)


def data_yaml(masks: MaskSet) -> str:
    """Return data.yaml; without another set of images, training and validation name the same."""
    names = "".join(f"  {i}: {_quoted(name)}\n" for i, name in enumerate(masks.classes))
    where = f"images/{masks.subset}"
    return (
        "# Only these images were exported: put others in val before you trust figures.\n"
        f"train: {where}\nval: {where}\nnames:\n{names}"
    )


def _shares(pixels: object, corner: tuple[int, int], image: MaskedImage, tolerance: float) -> list[str]:
    points = polygon(pixels, tolerance, "centres") + corner  # type: ignore[arg-type]
    height, width = image.size
    # A pixel or a straight line is a polygon, too: readers take three points for the least.
    points = points if len(points) > 2 else points[[0, -1, -1]]
    return [f"{value:.7g}" for value in ((points + _INSIDE) / (width, height)).ravel().tolist()]


def _quoted(name: str) -> str:
    """A text in YAML's double quotes, as any reader of YAML takes it back."""
    if any("\ud800" <= sign <= "\udfff" for sign in name):
        raise DataError(f"class {name!r}: is no Unicode text, expected one that can be written")
    plain = (sign if sign.isprintable() and sign not in '"\\' else f"\\U{ord(sign):08X}" for sign in name)
    return f'"{"".join(plain)}"'
