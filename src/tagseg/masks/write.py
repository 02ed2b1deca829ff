"""Pseudo-masks: maps to palette PNGs at the image's own size."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from tagseg.data.prepare import Prepared
from tagseg.masks.background import cut, decide, with_void
from tagseg.masks.localise import map_file, read_maps
from tagseg.masks.palette import png_palette
from tagseg.progress import Track, silent
from tagseg.run import Run, atomic_path, write_atomically
from tagseg.settings import MaskSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Masks:
    """Where the masks lie: with unsure pixels 255, and with every pixel decided; class id i is `classes[i]`."""

    folder: Path
    decided: Path
    classes: tuple[str, ...]


def make_masks(prepared: Prepared, run: Run, track: Track = silent) -> Masks:
    """Write every training image's pseudo-mask; images whose masks are there already are skipped."""
    settings = run.settings().mask_rule()
    samples = prepared.dataset.split("train")
    for folder in (run.masks, run.decided_masks):
        write_classes(folder, prepared.dataset.classes)
    blank = []
    for sample in track(samples, "masks", len(samples)):
        if not mask_file(run.decided_masks, sample.id).exists():
            maps, classes = read_maps(map_file(run, sample.id))
            ids, unsure = masks_from_maps(maps, classes, prepared.sizes[sample.id], settings)
            write_mask(mask_file(run.masks, sample.id), unsure)
            write_mask(mask_file(run.decided_masks, sample.id), ids)
            if not np.isin(unsure, classes).any():
                blank.append(sample.id)
    if blank:
        log.warning(
            "%d of %d masks hold none of their image's tags, first %s; if they are many, train longer (--train.epochs) "
            "or cut lower (--masks.background threshold --masks.threshold 0.3)",
            len(blank), len(samples), blank[0],
        )  # fmt: skip
    return Masks(run.masks, run.decided_masks, ("background", *prepared.dataset.classes))


def masks_from_maps(
    maps: UInt8[np.ndarray, "k h w"], classes: tuple[int, ...], size: tuple[int, int], settings: MaskSettings
) -> tuple[UInt8[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
    """Return an image's mask with every pixel decided, and the one whose unsure pixels are 255.

    `maps` (0..255 = 0..peak) are enlarged to `size` (height, width); `classes` are their class ids. A refinement of the
    enlarged maps, such as a dense CRF, belongs between enlarging and deciding.
    """
    cuts = [cut(values, settings) for values in maps]
    ids, unsure = decide(enlarge(maps, size), classes, cuts, settings.unsure)
    return ids, with_void(ids, unsure)


def enlarge(maps: UInt8[np.ndarray, "k h w"], size: tuple[int, int]) -> Float[np.ndarray, "k H W"]:
    """Return maps at `size` (height, width), bilinear, as shares of the peak 0..1."""
    large = [
        Image.fromarray(values.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR) for values in maps
    ]
    return np.stack([np.asarray(values) for values in large]) / 255 if large else np.zeros((0, *size), np.float32)


def mask_file(folder: Path, sample_id: str) -> Path:
    """Return where an image's mask lies: named like the image."""
    return folder / f"{sample_id}.png"


def write_mask(path: Path, mask: UInt8[np.ndarray, "h w"]) -> None:
    """Write a mask as a palette PNG in VOC's colours."""
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette(png_palette())
    with atomic_path(path) as temporary:
        picture.save(temporary, optimize=True)


def write_classes(folder: Path, classes: Sequence[str]) -> None:
    """Write classes.json: what the values in a folder's masks mean."""
    names = {"0": "background", **{str(i): name for i, name in enumerate(classes, 1)}, "255": "void"}
    write_atomically(folder / "classes.json", json.dumps(names, indent=1, ensure_ascii=False) + "\n")
