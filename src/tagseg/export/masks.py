"""The masks to export: a run's pseudo-masks, its predictions, or a folder of masks, read one image at a time."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from tagseg.data.images import image_size
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError
from tagseg.export.regions import regions
from tagseg.masks.mask_files import mask_file
from tagseg.masks.update import are_outdated, update_masks
from tagseg.prediction.find_images import find_images
from tagseg.run.decisions import decisions
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.segment.labels import class_values
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)

Unsure = Literal["void", "decided", "background"]
"""What happens to unsure pixels: they stay 255, the masks without them are exported, or they become background."""

Subset = Literal["train", "val", "default"]


@dataclass(frozen=True)
class MaskedImage:
    """An image and its mask.

    id: names the mask. name: the image's path below the folder of images, with its suffix. size: (height, width) in
    pixels, after the EXIF orientation is applied. tags: class ids.
    """

    id: str
    name: str
    image: Path
    size: tuple[int, int]
    mask: Path
    tags: tuple[int, ...] = ()


@dataclass(frozen=True)
class MaskSet:
    """The masks to export.

    classes: class id i is `classes[i - 1]`. subset: the run's split that the images belong to, or `default` for other
    images. values: maps the values in the files to class ids; None if they are class ids. min_part: connected parts of
    fewer pixels become background.
    """

    classes: tuple[str, ...]
    subset: Subset
    images: tuple[MaskedImage, ...]
    unsure: Unsure
    values: Mapping[int, int] | None = None
    min_part: int = 0


def collect_masks(run: Run, of: str, unsure: Unsure, photos: Path | None = None, track: Track = silent) -> MaskSet:
    """List a run's masks to export, without reading them.

    Args:
        run: a run folder.
        of: `final` (training images, after self-training if there was any), `pseudo` (training images, before
            self-training), `predictions` (validation images, by the segmentation network), or a folder of masks that
            `tagseg predict` or `tagseg import` wrote.
        unsure: what happens to unsure pixels.
        photos: the folder of the images, if `of` is a folder of masks of new images; None: they are images of the run.
        track: how to report progress.

    Raises:
        RunError: when the run has not made these masks yet.
        DataError: when a folder is missing or holds no mask of these images, or the masks of all training images were
            rejected.
    """
    prepared = prepare(run, track)
    dataset = prepared.dataset
    if photos is not None and of in ("final", "pseudo", "predictions"):
        raise DataError(f"--photos {photos}: requires --of FOLDER, got --of {of}, whose images are the run's own")
    if of in ("final", "pseudo"):
        run.require("masks")
        source = run.final() if of == "final" else run
        if are_outdated(prepared, run):  # otherwise the run may be read-only, or another command at work on it
            with hold_lock(run.root):
                update_masks(prepared, run, track)
        folder = source.decided_masks if unsure == "decided" else source.masks
        return MaskSet(dataset.classes, "train", _of_run(prepared, _not_rejected(run, dataset), folder), unsure)
    if of == "predictions":
        run.require("evaluate")
        images = _of_run(prepared, dataset.split("val"), run.predictions)
        if not images:
            raise DataError(
                f"{run.predictions}: holds no mask of a validation image; predict some with `tagseg predict`"
            )
        return MaskSet(dataset.classes, "val", images, unsure)
    folder = Path(of)
    if not folder.is_dir():
        raise DataError(f"--of {of}: no such folder, expected final, pseudo, predictions or a folder of masks")
    if photos is None:
        images = _of_run(prepared, dataset.samples, folder)
    else:
        images = _of_photos(photos, folder, run.settings().data.max_megapixels, track)
    if not images:
        whose = f"an image in {photos}" if photos is not None else "an image of the run; for other images, add --photos"
        raise DataError(f"--of {of}: holds no mask of {whose}")
    # Folders that tagseg wrote always have classes.json; without it, nothing tells the meaning of the values.
    values = class_values(folder / "classes.json", dataset)
    return MaskSet(dataset.classes, "default", images, unsure, values)


def read_mask(masks: MaskSet, image: MaskedImage) -> UInt8[np.ndarray, "h w"]:
    """Return an image's mask as class ids: 0 background, 1..C, and 255 only if unsure pixels are kept.

    Raises:
        DataError: when the mask cannot be read, differs in size from its image, holds a value that is not a class, or
            has unsure pixels although `masks.unsure` is `decided`.
    """
    meaning = Dataset(image.mask.parent, "folder", masks.classes, (), masks.values)
    mask = load_mask(Sample(image.id, image.image, image.tags, mask=image.mask), meaning, image.size)
    unsure = mask == VOID
    if masks.unsure == "decided" and unsure.any():
        raise DataError(f"{image.mask}: has unsure pixels (255), expected none; choose --unsure void or background")
    if masks.unsure == "background":
        mask = np.where(unsure, np.uint8(0), mask)
    return without_specks(mask, masks.min_part) if masks.min_part > 1 else mask


def without_specks(mask: UInt8[np.ndarray, "h w"], min_part: int) -> UInt8[np.ndarray, "h w"]:
    """Return a mask with connected parts of fewer than `min_part` pixels turned into background; 255 stays."""
    cleaned = mask.copy()
    for region in regions(mask):
        for part in region.parts() if region.class_id != VOID else ():
            if part.area() < min_part:
                left, top, width, height = part.box()
                cleaned[top : top + height, left : left + width][part.pixels()] = 0
    return cleaned


def image_name(sample: Sample) -> str:
    """Return an image's path below the folder of images, with its suffix; it is unique in the data set."""
    return _file_name(sample.id, sample.image)


def _file_name(id: str, image: Path) -> str:
    # If images differ only in their suffix, their ids have kept it.
    return id if Path(id).name == image.name else id + image.suffix


def _not_rejected(run: Run, dataset: Dataset) -> tuple[Sample, ...]:
    """Return the training images whose masks no person has rejected."""
    rejected = {name for name, decision in decisions(run).items() if decision.verdict == "rejected"}
    kept = tuple(sample for sample in dataset.split("train") if sample.id not in rejected)
    if len(kept) < len(dataset.split("train")):
        log.info("images left out because their masks were rejected: %d", len(dataset.split("train")) - len(kept))
    if not kept:
        raise DataError(f"{run.root}: nothing to export, the masks of all training images were rejected")
    return kept


def _of_run(prepared: Prepared, samples: tuple[Sample, ...], folder: Path) -> tuple[MaskedImage, ...]:
    found = [(sample, mask_file(folder, sample.id)) for sample in samples]
    return tuple(
        MaskedImage(sample.id, image_name(sample), sample.image, prepared.sizes[sample.id], mask, sample.tags)
        for sample, mask in found
        if mask.exists()
    )


def _of_photos(photos: Path, folder: Path, max_megapixels: float, track: Track) -> tuple[MaskedImage, ...]:
    if not photos.is_dir():
        raise DataError(f"--photos {photos}: no such folder, expected the folder of the masks' images")
    named = {name: Path(path) for name, path in find_images([photos], folder).items()}
    found = {name: path for name, path in named.items() if mask_file(folder, name).exists()}
    images = []
    for name, path in track(found.items(), "read images", len(found)):
        size = image_size(path, max_megapixels)
        images.append(MaskedImage(name, _file_name(name, path), path, size, mask_file(folder, name)))
    return tuple(images)
