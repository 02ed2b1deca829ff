"""Class activation maps of other methods: read from their files, checked, and turned into maps and masks like ours."""

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
from tagseg.masks.map_files import map_file, read_array, read_member, write_maps
from tagseg.masks.resize import refined_size
from tagseg.run.folder import Run
from tagseg.settings.crf import CrfSettings
from tagseg.settings.masks import MaskSettings
from tagseg.system.progress import Track, images_per_s, map_ahead, silent
from tagseg.system.untrusted import DAMAGED_ARRAY, is_file, require_regular

log = logging.getLogger(__name__)

MOST_SIDE = 1024
"""Cells along the long side of a map; larger ones are reduced when they are read."""

MOST_CELLS = 1 << 27
"""A map of more cells is refused: 512 MB as float32, more than the largest image has pixels."""

SUFFIXES = (".npz", ".npy")

ROUNDING = 1e-3
"""Probabilities that leave 0..1 by less than this were rounded."""


def import_maps(
    dataset: Dataset, run: Run, track: Track = silent, then: Callable[[Sample], None] | None = None
) -> Localised:
    """Store the maps that another method made (`localise.maps_from`) of every training image as a run's own are stored.

    What the files hold is said at `read_foreign_maps`. Images whose maps are there already are skipped, so an
    interrupted stage continues. `then` is called with every sample whose maps are there.

    Raises:
        DataError: naming the folder or file, when an image has none or its maps cannot be used.
    """
    settings, samples = run.settings().localise, dataset.split("train")
    files = _find_files(Path(settings.maps_from), samples)

    def take(sample: Sample) -> tuple[Sample, bool]:
        if map_file(run, sample.id).exists():
            return sample, False
        probabilities = settings.maps_hold == "probabilities"
        maps = read_foreign_maps(files[sample.id], sample.tags, dataset.classes, probabilities)
        write_maps(map_file(run, sample.id), maps, sample.tags)
        return sample, True

    started, images = time.monotonic(), 0
    with contextlib.closing(map_ahead(samples, take, READERS)) as taken:
        for sample, new in track(taken, "read maps", len(samples)):
            images += new
            if then is not None:
                then(sample)
    pace = images_per_s(images, time.monotonic() - started)
    log.info("localise: maps of %d images from %s, %.1f a second", images, settings.maps_from, pace)
    return Localised(run.maps, images, pace)


def read_foreign_maps(
    path: Path, tags: tuple[int, ...], classes: Sequence[str], probabilities: bool = False
) -> Float32[np.ndarray, "k h w"]:
    """Return the maps of an image's tags (class ids 1..C) from an .npz or .npy file of another method, as shares 0..1.

    | file | holds |
    |---|---|
    | .npz | an array `h w` a class, under the class's name or id |
    | .npz | `maps` (k h w) and `classes` (k names or ids) |
    | .npz, .npy | `maps` alone, or the file's array: k maps, one a tag or one a class of the data set, by their ids |

    Maps may have any resolution, and cover the whole image. Those of other classes and of `background` are left out.

    Args:
        path: the file; Python objects in it are never unpickled.
        tags: the image's class ids in ascending order; class id i is `classes[i - 1]`.
        classes: names of the data set's classes.
        probabilities: values are probabilities, and kept; otherwise each map is divided by its peak, negative values
            count as 0.

    Raises:
        DataError: naming the file, when it is damaged, a tag has no map, or values are of the wrong kind, not finite,
            or no probabilities.
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
        raise DataError(f"{path}: no maps that could be used: {error}") from error


def to_shares(maps: Sequence[Shaped[np.ndarray, "h w"]], probabilities: bool = False) -> Float32[np.ndarray, "k y x"]:
    """Return maps of any numbers and one size as shares 0..1, their long side reduced to `MOST_SIDE` cells (see
    `read_foreign_maps`).

    Raises:
        ValueError: when values are of the wrong kind, not finite or no probabilities, or sizes differ.
    """
    if len({one.shape for one in maps}) > 1:
        raise ValueError(f"maps of sizes {', '.join(str(one.shape) for one in maps)}, expected one size")
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
    """Return an image's mask with every pixel decided, and the one whose unsure pixels are 255, from any method's maps.

    Args:
        image: RGB.
        maps: one a class that the image shows, of any resolution and any numbers (see `to_shares`).
        classes: their ids, 1 to 254; background becomes 0.
        settings, crf: as in a run; background's rule `auto` is `rest` for probabilities and `otsu` for other maps.
        probabilities: values are probabilities.

    Raises:
        ValueError: as `to_shares`, or when there are not as many maps as ids.

    >>> image = np.zeros((40, 60, 3), np.uint8)
    >>> image[:, 30:] = 255
    >>> left = np.linspace(1, 0, 12).reshape(1, 1, 12).repeat(8, 1)
    >>> decided, sure = mask_from_maps(image, left, classes=(7,))
    >>> bool((decided[:, :30] == 7).all() and (decided[:, 30:] == 0).all())
    True
    """
    if len(maps) != len(classes) or not all(0 < class_id < 255 for class_id in classes):
        raise ValueError(f"{len(maps)} maps of classes {classes}: expected as many ids, 1 to 254, as maps")
    size = (image.shape[0], image.shape[1])
    rule = settings.resolved(probabilities)
    small = Image.fromarray(image).resize(refined_size(size, rule)[::-1], Image.Resampling.BILINEAR)
    shares = (to_shares(list(maps), probabilities) * 255).round().astype(np.uint8)
    return mask_image(np.asarray(small), shares, classes, size, rule, crf)


def _find_files(source: Path, samples: Sequence[Sample]) -> Mapping[str, Path]:
    if not source.is_dir():
        raise DataError(f"--maps-from {source}: no such folder; expected maps, .npz or .npy, named like the images")
    found, missing = {}, []
    for sample in samples:
        files = [file for suffix in SUFFIXES if is_file(file := source / f"{sample.id}{suffix}")]
        if files:
            found[sample.id] = files[0]
        else:
            missing.append(sample.id)
    if missing:
        raise DataError(
            f"--maps-from {source}: holds no maps of {len(missing)} of the {len(samples)} training images, expected "
            f"{missing[0]}.npz or .npy, and so on; take images without maps out of the data folder"
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
            f"maps of shape {maps.shape} and classes of {ids.dtype} and shape {ids.shape}, expected (k, h, w) and k "
            "names or ids"
        )
    return [maps[row] for row in _rows([str(one) for one in ids], tags, classes)]


def _rows(names: Sequence[str], tags: tuple[int, ...], classes: Sequence[str]) -> list[int]:
    """The place of every tag's map among maps of `names`, which are those of classes or ids."""
    ids = {name: i for i, name in enumerate(classes, 1)}
    known = [ids.get(name, int(name) if name.isdecimal() else None) for name in names]
    for tag in tags:
        if known.count(tag) != 1:
            raise ValueError(
                f"{known.count(tag)} maps of the tag {classes[tag - 1]} (id {tag}), expected one; it holds "
                f"{', '.join(names)[:300] or 'nothing'}"
            )
    return [known.index(tag) for tag in tags]


def _in_order(
    maps: Shaped[np.ndarray, "..."], tags: tuple[int, ...], classes: Sequence[str]
) -> list[Shaped[np.ndarray, "h w"]]:
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or len(maps) not in (len(tags), len(classes)):
        shown = ", ".join(classes[tag - 1] for tag in tags)
        raise ValueError(
            f"an array of shape {maps.shape}, expected (k, h, w) with k = {len(tags)}, a map a tag ({shown}), or k = "
            f"{len(classes)}, a map a class, both in the order of ids"
        )
    return list(maps) if len(maps) == len(tags) else [maps[tag - 1] for tag in tags]


def _to_share(values: Shaped[np.ndarray, "h w"], probabilities: bool) -> Float32[np.ndarray, "y x"]:
    if values.ndim != 2 or values.dtype.kind not in "fiub" or not 0 < values.size <= MOST_CELLS:
        raise ValueError(
            f"a map of {values.dtype} and shape {values.shape}, expected numbers, (h, w), at most {MOST_CELLS:,} cells"
        )
    with np.errstate(over="ignore"):
        share = values.astype(np.float32)
    low, high = float(share.min()), float(share.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("a map holds NaN or infinite numbers")
    if probabilities and not -ROUNDING <= low <= high <= 1 + ROUNDING:
        raise ValueError(f"values from {low:g} to {high:g}, expected probabilities, 0 to 1 (localise.maps-hold)")
    share = np.clip(share, 0, 1 if probabilities else None)
    if max(share.shape) > MOST_SIDE:
        height, width = (max(round(side * MOST_SIDE / max(share.shape)), 1) for side in share.shape)
        share = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BOX))
    peak = np.float32(1) if probabilities else share.max()
    return share / peak if peak > 0 else share
