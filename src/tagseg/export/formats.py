"""Export: a run's masks in the formats of other tools."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tagseg.errors import DataError
from tagseg.export.coco import write_coco
from tagseg.export.cvat import write_cvat
from tagseg.export.folder import Images, place_images, whole_folder
from tagseg.export.huggingface import huggingface_folder, write_huggingface
from tagseg.export.labelstudio import write_labelstudio
from tagseg.export.masks import MaskedImage, MaskSet, Unsure, collect_masks
from tagseg.export.voc import write_voc
from tagseg.export.yolo import write_yolo, yolo_image
from tagseg.run.folder import Run
from tagseg.settings.export import ExportSettings
from tagseg.system.progress import Track, silent

MaskFormat = Literal["coco", "yolo", "voc", "labelstudio", "cvat", "hf"]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: the folder, and how many masks are in it."""

    folder: Path
    masks: int


@dataclass(frozen=True)
class _Format:
    """How a format is written; what it makes of unsure pixels and images, the default first; its own flags; and where
    an image lies in it (a path below the folder)."""

    write: Callable[[MaskSet, Path, ExportSettings, Track], None]
    unsure: tuple[Unsure, ...]
    images: tuple[Images, ...]
    flags: tuple[str, ...]
    place: Callable[[MaskSet, MaskedImage], Path]


_FORMATS: dict[MaskFormat, _Format] = {
    "coco": _Format(
        write_coco, ("decided", "void", "background"), ("none", "copy", "link"), ("--parts", "--polygons"),
        lambda masks, image: Path("images", image.name),
    ),
    # A line is a part in any case.
    "yolo": _Format(write_yolo, ("decided", "background"), ("copy", "link", "none"), ("--parts",), yolo_image),
    "voc": _Format(
        write_voc, ("void", "decided", "background"), ("none", "copy", "link"), (),
        lambda masks, image: Path("JPEGImages", image.name),
    ),
    "labelstudio": _Format(
        write_labelstudio, ("decided", "background"), ("none", "copy", "link"), ("--parts",),
        lambda masks, image: Path("images", image.name),
    ),
    "cvat": _Format(
        write_cvat, ("decided", "background"), ("none",), ("--parts", "--polygons"),
        lambda masks, image: Path(image.name),
    ),
    "hf": _Format(
        write_huggingface, ("void", "decided", "background"), ("copy", "link"), (),
        lambda masks, image: huggingface_folder(masks) / image.name,
    ),
}  # fmt: skip


def export(
    run: str | Path,
    to: MaskFormat,
    out: str | Path,
    of: str = "final",
    photos: Path | None = None,
    unsure: Unsure | None = None,
    images: Images | None = None,
    settings: ExportSettings = ExportSettings(),
    force: bool = False,
    track: Track = silent,
) -> Exported:
    """Write a run's masks into `out` as another tool reads them; made_by_tagseg.json there says how.

    Args:
        run: a run folder.
        to: the format.
        out: a new folder; it appears when all is written.
        of: which masks (see `collect_masks`).
        photos: with a folder of masks, the folder of their images.
        unsure: what becomes of unsure pixels; by default they stay 255 where the format can say so, and otherwise the
            masks without them are taken.
        images: whether images lie beside; by default copies where the format is nothing without them.
        settings: how the masks are written.
        force: replace an export that is there.
        track: how to report progress.

    Raises:
        ValueError: when the run has no such masks, the format cannot do what is asked, or a name cannot stand in it.
    """
    about = _FORMATS[to]
    unsure, images = unsure or about.unsure[0], images or about.images[0]
    _check(to, "--unsure", unsure, about.unsure)
    _check(to, "--images", images, about.images)
    for flag, given in (("--parts", settings.parts), ("--polygons", settings.polygons)):
        if given and flag not in about.flags:
            able = ", ".join(name for name, one in _FORMATS.items() if flag in one.flags)
            raise DataError(f"{flag}: --to {to} has no use for it, expected with it one of {able}")
    folder = Path(out)
    described = {"export": to, "run": str(Path(run).resolve()), "of": of, "unsure": unsure, "images": images}
    with whole_folder(folder, described, force) as temporary:
        masks = collect_masks(Run(Path(run)), of, unsure, photos, track)
        masks = dataclasses.replace(masks, min_part=settings.min_part)
        about.write(masks, temporary, settings, track)
        pairs = ((image.image, temporary / about.place(masks, image)) for image in masks.images)
        place_images(pairs, images, len(masks.images), track)
    return Exported(folder, len(masks.images))


def _check(to: MaskFormat, flag: str, given: str, able: tuple[str, ...]) -> None:
    if given not in able:
        raise DataError(f"{flag} {given}: --to {to} cannot do that, expected {' or '.join(able)}")
