"""Export a run's masks in the formats of other tools."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tagseg.errors import DataError
from tagseg.export.coco import write_coco
from tagseg.export.cvat import write_cvat
from tagseg.export.datumaro import datumaro_image, write_datumaro
from tagseg.export.folder import Images, place_images, whole_folder
from tagseg.export.huggingface import huggingface_folder, write_huggingface
from tagseg.export.labelme import write_labelme
from tagseg.export.labelstudio import write_labelstudio
from tagseg.export.masks import MaskedImage, MaskSet, Unsure, collect_masks
from tagseg.export.voc import write_voc
from tagseg.export.yolo import write_yolo, write_yolo_semantic, yolo_image
from tagseg.run.folder import Run
from tagseg.settings.export import ExportSettings
from tagseg.system.progress import Track, silent

MaskFormat = Literal["coco", "yolo", "yolo-semantic", "voc", "labelstudio", "cvat", "labelme", "datumaro", "hf"]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: the folder, and the number of masks in it."""

    folder: Path
    masks: int


@dataclass(frozen=True)
class _Format:
    """An export format.

    write: its writer. unsure, images: the choices it allows for unsure pixels and for images, the default first. flags:
    the optional flags it supports. place: an image's path inside the export folder.
    """

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
    # In YOLO every line is a connected part, with or without --parts.
    "yolo": _Format(write_yolo, ("decided", "background"), ("copy", "link", "none"), ("--parts",), yolo_image),
    "yolo-semantic": _Format(
        write_yolo_semantic, ("void", "decided", "background"), ("copy", "link", "none"), (), yolo_image,
    ),
    "voc": _Format(
        write_voc, ("void", "decided", "background"), ("none", "copy", "link"), (),
        lambda masks, image: Path("JPEGImages", image.name),
    ),
    "labelstudio": _Format(
        write_labelstudio, ("decided", "background"), ("copy", "link", "none"), ("--parts",),
        lambda masks, image: Path("images", image.name),
    ),
    "cvat": _Format(
        write_cvat, ("decided", "background"), ("none",), ("--parts", "--polygons"),
        lambda masks, image: Path(image.name),
    ),
    "labelme": _Format(
        write_labelme, ("decided", "background"), ("copy", "link", "none"), ("--parts", "--polygons"),
        lambda masks, image: Path(image.name),
    ),
    "datumaro": _Format(
        write_datumaro, ("decided", "void", "background"), ("copy", "link", "none"), ("--parts",), datumaro_image,
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
    """Write a run's masks to the folder `out` in another tool's format, with a made_by_tagseg.json that says how.

    Args:
        run: a run folder.
        to: the format.
        out: a new folder; it appears once everything is written.
        of: which masks (see `collect_masks`).
        photos: the folder of the images, if `of` is a folder of masks of new images.
        unsure: what happens to unsure pixels; by default they stay 255 if the format allows it, otherwise the masks
            without unsure pixels are exported.
        images: whether to export the images too; by default they are copied if the format requires them.
        settings: how to write the masks.
        force: replace an existing export.
        track: how to report progress.

    Raises:
        ValueError: when the run has no such masks, the format does not support an option, or it cannot hold the name of
            a class or an image.
    """
    chosen = _FORMATS[to]
    unsure, images = unsure or chosen.unsure[0], images or chosen.images[0]
    _require_supported(to, "--unsure", unsure, chosen.unsure)
    _require_supported(to, "--images", images, chosen.images)
    for flag, given in (("--parts", settings.parts), ("--polygons", settings.polygons)):
        if given and flag not in chosen.flags:
            able = ", ".join(name for name, one in _FORMATS.items() if flag in one.flags)
            raise DataError(f"{flag}: not supported by --to {to}, expected one of {able}")
    folder = Path(out)
    about = {"export": to, "run": str(Path(run).resolve()), "of": of, "unsure": unsure, "images": images}
    with whole_folder(folder, about, force) as temporary:
        masks = collect_masks(Run(Path(run)), of, unsure, photos, track)
        masks = dataclasses.replace(masks, min_part=settings.min_part)
        chosen.write(masks, temporary, settings, track)
        pairs = ((image.image, temporary / chosen.place(masks, image)) for image in masks.images)
        place_images(pairs, images, len(masks.images), track)
    return Exported(folder, len(masks.images))


def _require_supported(to: MaskFormat, flag: str, given: str, able: tuple[str, ...]) -> None:
    if given not in able:
        raise DataError(f"{flag} {given}: not supported by --to {to}, expected {' or '.join(able)}")
