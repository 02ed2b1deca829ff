"""Class activation maps of other methods: read and check them, and turn them into tagseg's own maps and masks."""

import contextlib
import logging
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image

from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError
from tagseg.masks.localise import READERS, Localised
from tagseg.masks.make import mask_image
from tagseg.masks.map_files import map_file, quantised_maps, read_array, read_maps, read_member, write_maps
from tagseg.masks.mask_files import mask_file
from tagseg.masks.resize import refined_size
from tagseg.run.folder import Run
from tagseg.settings.crf import CrfSettings
from tagseg.settings.masks import MaskSettings
from tagseg.system.progress import Track, images_per_s, map_ahead, silent
from tagseg.system.untrusted import DAMAGED_ARRAY, is_file, require_regular

log = logging.getLogger(__name__)

MOST_SIDE = 1024
"""Cells along the long side of a map; larger maps are reduced when they are read."""

MOST_CELLS = 1 << 27
"""A map of more cells is rejected: 512 MB as float32, more cells than the largest image has pixels."""

SUFFIXES = (".npz", ".npy")

ROUNDING = 1e-3
"""Probabilities outside 0..1 by less than this are rounding errors."""


def import_maps(
    dataset: Dataset, run: Run, track: Track = silent, then: Callable[[Sample], None] | None = None
) -> Localised:
    """Store another method's maps (`localise.maps_from`) of every training image like the run's own.

    See `read_foreign_maps` for the format of the files; images without tags need none. An interrupted stage resumes:
    images that have these maps keep them, and those that have others get these, and lose their masks. `then` is called
    with every sample once its maps exist.

    Raises:
        DataError: naming the folder or file, when an image has no maps or they cannot be used.
    """
    settings, samples = run.settings().localise, dataset.split("train")
    files = _find_files(Path(settings.maps_from), [sample for sample in samples if sample.tags])

    def take(sample: Sample) -> tuple[Sample, bool]:
        file = map_file(run, sample.id)
        probabilities = settings.maps_hold == "probabilities"
        maps = np.zeros((0, 1, 1), np.float32)  # an image without tags has no maps
        if sample.tags:
            maps = read_foreign_maps(files[sample.id], sample.tags, dataset.classes, probabilities)
        if file.exists():
            if _are_stored(file, maps, sample.tags):
                return sample, False
            for folder in (run.masks, run.decided_masks):
                mask_file(folder, sample.id).unlink(missing_ok=True)
        write_maps(file, maps, sample.tags)
        return sample, True

    started, images = time.monotonic(), 0
    with contextlib.closing(map_ahead(samples, take, READERS)) as taken:
        for sample, new in track(taken, "read maps", len(samples)):
            images += new
            if then is not None:
                then(sample)
    pace = images_per_s(images, time.monotonic() - started)
    log.info("localise: maps of %d images from %s, %.1f images/s", images, settings.maps_from, pace)
    return Localised(run.maps, images, pace)


def _are_stored(file: Path, maps: Float32[np.ndarray, "k h w"], tags: tuple[int, ...]) -> bool:
    stored, classes = read_maps(file)
    return classes == tags and np.array_equal(stored, quantised_maps(maps))


def read_foreign_maps(
    path: Path, tags: tuple[int, ...], classes: Sequence[str], probabilities: bool = False
) -> Float32[np.ndarray, "k h w"]:
    """Return the maps of an image's tags (class ids 1..C) from an .npz or .npy file of another method, as shares 0..1.

    | file | content |
    |---|---|
    | .npz | one array `h w` per class, under the name or id of the class |
    | .npz | `maps` (k h w) and `classes` (k names or ids) |
    | .npz, .npy | only `maps`, or the array of the file: k maps, one per tag or one per class, in order of their ids |

    Maps may have any resolution and cover the whole image. Maps of other classes and of `background` are ignored.

    Args:
        path: the file; Python objects in it are never unpickled.
        tags: the image's class ids in ascending order; class id i is `classes[i - 1]`.
        classes: names of the data set's classes.
        probabilities: the values are probabilities and are kept; otherwise each map is divided by its peak, and
            negative values count as 0.

    Raises:
        DataError: naming the file, when it is damaged, a tag has no map, or the values are of the wrong type, not
            finite or, with `probabilities`, not in 0..1.
    """
    try:
        require_regular(path)
        if path.suffix == ".npy":
            with path.open("rb") as file:
                array = read_array(file, os.fstat(file.fileno()).st_size, path.name)
            found = _in_order(array, tags, classes)
        else:
            with zipfile.ZipFile(path) as archive:
                found = _from_archive(archive, tags, classes)
        return to_shares(found, probabilities)
    except DAMAGED_ARRAY as error:
        raise DataError(f"{path}: cannot use its maps: {error}") from error


def to_shares(maps: Sequence[Shaped[np.ndarray, "h w"]], probabilities: bool = False) -> Float32[np.ndarray, "k y x"]:
    """Return maps of any numbers as shares 0..1, with the long side reduced to `MOST_SIDE` cells (see
    `read_foreign_maps`). All maps must have the same size.

    Raises:
        ValueError: when sizes differ, or values are of the wrong type, not finite or, with `probabilities`, not in
            0..1.
    """
    if len({one.shape for one in maps}) > 1:
        raise ValueError(f"all maps must have the same size, got {', '.join(str(one.shape) for one in maps)}")
    shares = [_to_share(one, probabilities) for one in maps]
    return np.stack(shares) if shares else np.zeros((0, 1, 1), np.float32)


def mask_from_maps(
    image: UInt8[np.ndarray, "H W 3"],
    maps: Shaped[np.ndarray, "k h w"],
    classes: tuple[int, ...],
    settings: MaskSettings = MaskSettings(),
    crf: CrfSettings = CrfSettings(),
    probabilities: bool = False,
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
    """Return an image's mask with every pixel decided, and its mask with unsure pixels 255, from any method's maps.

    Args:
        image: RGB.
        maps: one per class in the image, of any resolution and with any numbers (see `to_shares`).
        classes: the ids of these classes, 1 to 254; background becomes 0.
        settings, crf: as in a run; the background rule `auto` is `rest` for probabilities and `otsu` for other maps.
        probabilities: the values of the maps are probabilities.

    Raises:
        ValueError: as in `to_shares`, or when the numbers of maps and ids differ.

    >>> image = np.zeros((40, 60, 3), np.uint8)
    >>> image[:, 30:] = 255
    >>> left = np.linspace(1, 0, 12).reshape(1, 1, 12).repeat(8, 1)
    >>> decided, sure = mask_from_maps(image, left, classes=(7,))
    >>> bool((decided[:, :30] == 7).all() and (decided[:, 30:] == 0).all())
    True
    """
    if len(maps) != len(classes) or not all(0 < class_id < 255 for class_id in classes):
        raise ValueError(f"expected one id, 1 to 254, per map; got {len(maps)} maps and the ids {classes}")
    size = (image.shape[0], image.shape[1])
    rule = settings.resolved(probabilities)
    small = Image.fromarray(image).resize(refined_size(size, rule)[::-1], Image.Resampling.BILINEAR)
    shares = (to_shares(list(maps), probabilities) * 255).round().astype(np.uint8)
    return mask_image(np.asarray(small), shares, classes, size, rule, crf)


def _find_files(source: Path, samples: Sequence[Sample]) -> Mapping[str, Path]:
    if not source.is_dir():
        raise DataError(
            f"--maps-from {source}: not a folder; expected a folder of .npz or .npy maps named like the images"
        )
    found, missing = {}, []
    for sample in samples:
        files = [file for suffix in SUFFIXES if is_file(file := source / f"{sample.id}{suffix}")]
        if files:
            found[sample.id] = files[0]
        else:
            missing.append(sample.id)
    if missing:
        raise DataError(
            f"--maps-from {source}: maps are missing for {len(missing)} of the {len(samples)} training images, such as "
            f"{missing[0]}.npz or .npy; add them, or remove these images from the data folder"
        )
    return found


def _from_archive(
    archive: zipfile.ZipFile, tags: tuple[int, ...], classes: Sequence[str]
) -> list[Shaped[np.ndarray, "h w"]]:
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if "maps" not in names:
        return [read_member(archive, names[row]) for row in _rows(names, tags, classes)]
    maps = read_member(archive, "maps")
    if "classes" not in names:
        return _in_order(maps, tags, classes)
    ids = read_member(archive, "classes")
    if maps.ndim != 3 or ids.shape != maps.shape[:1] or ids.dtype.kind not in "iuU":
        raise ValueError(
            "expected maps of shape (k, h, w) and k names or ids as classes; got maps of shape "
            f"{maps.shape} and classes of type {ids.dtype} and shape {ids.shape}"
        )
    return [maps[row] for row in _rows([str(one) for one in ids], tags, classes)]


def _rows(names: Sequence[str], tags: tuple[int, ...], classes: Sequence[str]) -> list[int]:
    """Return the index of every tag's map among maps with the given names, which are class names or ids."""
    ids = {name: i for i, name in enumerate(classes, 1)}
    known = [ids.get(name, int(name) if name.isdecimal() else None) for name in names]
    for tag in tags:
        if known.count(tag) != 1:
            raise ValueError(
                f"expected one map of the tag {classes[tag - 1]} (id {tag}), found {known.count(tag)}; the file "
                f"contains {', '.join(names)[:300] or 'no maps'}"
            )
    return [known.index(tag) for tag in tags]


def _in_order(
    maps: Shaped[np.ndarray, "..."], tags: tuple[int, ...], classes: Sequence[str]
) -> list[Shaped[np.ndarray, "h w"]]:
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or len(maps) not in (len(tags), len(classes)):
        shown = ", ".join(classes[tag - 1] for tag in tags)
        raise ValueError(
            f"expected an array of shape (k, h, w) with k = {len(tags)}, one map per tag ({shown}), or k = "
            f"{len(classes)}, one map per class, in the order of the ids; got shape {maps.shape}"
        )
    return list(maps) if len(maps) == len(tags) else [maps[tag - 1] for tag in tags]


def _to_share(values: Shaped[np.ndarray, "h w"], probabilities: bool) -> Float32[np.ndarray, "y x"]:
    if values.ndim != 2 or values.dtype.kind not in "fiub" or not 0 < values.size <= MOST_CELLS:
        raise ValueError(
            f"a map must contain numbers and have shape (h, w) and at most {MOST_CELLS:,} cells; got {values.dtype} "
            f"and shape {values.shape}"
        )
    with np.errstate(over="ignore"):
        share = values.astype(np.float32)
    low, high = float(share.min()), float(share.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("a map contains NaN or infinite numbers")
    if probabilities and not -ROUNDING <= low <= high <= 1 + ROUNDING:
        raise ValueError(f"probabilities must be 0 to 1 (localise.maps-hold), got values from {low:g} to {high:g}")
    share = np.clip(share, 0, 1 if probabilities else None)
    if max(share.shape) > MOST_SIDE:
        height, width = (max(round(side * MOST_SIDE / max(share.shape)), 1) for side in share.shape)
        share = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BOX))
    peak = np.float32(1) if probabilities else share.max()
    return share / peak if peak > 0 else share
