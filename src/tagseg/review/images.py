"""What the review page shows of an image: a thumbnail, the photo, the mask over it; nothing from elsewhere."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import BoundedSemaphore, Lock

import numpy as np
from PIL import Image

from tagseg.data.images import read_image, read_mask_file
from tagseg.errors import DataError
from tagseg.masks.make import mask_sample
from tagseg.masks.map_files import map_file
from tagseg.masks.mask_files import mask_file
from tagseg.report.overlay import draw_mask, encoded
from tagseg.review.queue import Queue, ReviewItem
from tagseg.run.decisions import Decision, MaskPair

PHOTO_SIDE = 1280
"""Long side in pixels of the photo at most, and of the mask over it."""

THUMB_SIDE = 144
"""Long side of a thumbnail, in pixels."""

THUMBS, PHOTOS, MASKS = 3000, 24, 64
"""So many of each are kept in memory: about 15 MB, 10 MB, and a few MB as masks compress well."""


@dataclass(frozen=True)
class Shown:
    """Makes what is shown of an image, given its place in the queue; what was made last is kept in memory.

    thumb, photo: JPEG. masks: every pixel decided, and with unsure ones 255, at the image's own size, without the
    classes that are off and by the threshold.
    """

    thumb: Callable[[int], bytes]
    photo: Callable[[int], bytes]
    masks: Callable[[int, tuple[int, ...], float, bool], MaskPair]


def show_queue(queue: Queue) -> Shown:
    """Return what makes the pictures of a queue.

    What it makes raises DataError, RunError when a file cannot be read, or lies outside the run and the data folder.
    """
    # A mask takes all cores for a moment; and what is asked for twice shall be made once.
    one_at_a_time = Lock()
    # A browser asks for many at once, and a large photo takes much memory while it is decoded.
    two_at_a_time = BoundedSemaphore(2)
    limit = queue.settings.data.max_megapixels

    @lru_cache(maxsize=THUMBS)
    def thumb(place: int) -> bytes:
        with two_at_a_time:
            picture = _reduced(
                read_image(own_file(queue, queue.entries[place].sample.image), limit, THUMB_SIDE), THUMB_SIDE
            )
        return encoded(picture, "jpeg", quality=75)

    @lru_cache(maxsize=PHOTOS)
    def photo(place: int) -> bytes:
        with two_at_a_time:
            picture = _reduced(
                read_image(own_file(queue, queue.entries[place].sample.image), limit, PHOTO_SIDE), PHOTO_SIDE
            )
        return encoded(picture, "jpeg", quality=88)

    @lru_cache(maxsize=MASKS)
    def packed(place: int, off: tuple[int, ...], threshold: float, fresh: bool) -> tuple[bytes, bytes]:
        decided, sure = preview_masks(queue, queue.entries[place], off, threshold, fresh)
        return zlib.compress(decided.tobytes(), 1), zlib.compress(sure.tobytes(), 1)

    def masks(place: int, off: tuple[int, ...], threshold: float, fresh: bool) -> MaskPair:
        with one_at_a_time:
            both = packed(place, off, threshold, fresh)
        size = queue.entries[place].size
        decided, sure = (np.frombuffer(zlib.decompress(one), np.uint8).reshape(size) for one in both)
        return decided, sure

    return Shown(thumb, photo, masks)


def preview_masks(queue: Queue, entry: ReviewItem, off: tuple[int, ...], threshold: float, fresh: bool) -> MaskPair:
    """Return an image's masks, as they lie in the run; or, where `fresh` is asked for, made anew from its maps without
    the classes that are off and by the threshold.

    Raises:
        DataError: when a file cannot be read, or lies outside the run and the data folder.
        RunError: when the image's maps are missing.
    """
    sample, source = entry.sample, queue.source
    if fresh:
        for path in (sample.image, map_file(source, sample.id)):
            own_file(queue, path)
        return mask_sample(source, sample, entry.size, queue.settings, Decision("open", off, threshold))
    decided, sure = (
        read_mask_file(own_file(queue, mask_file(folder, sample.id)), entry.size)
        for folder in (source.decided_masks, source.masks)
    )
    return decided, sure


def draw_overlay(masks: MaskPair) -> bytes:
    """Return the mask with unsure pixels as a see-through PNG whose long side is `PHOTO_SIDE`."""
    _, sure = masks
    scale = PHOTO_SIDE / max(sure.shape)
    height, width = (max(round(side * scale), 1) for side in sure.shape)
    return encoded(draw_mask(sure, width, height, stripe=7), "png", transparency=0, compress_level=3)


def own_file(queue: Queue, path: Path) -> Path:
    """Return a path unless it leads out of the run and the data folder, as a link may.

    Raises:
        DataError: when it does.
    """
    real = path.resolve()
    if not any(real.is_relative_to(folder) for folder in (queue.data, queue.run.root.resolve())):
        raise DataError(f"{path}: leads out of the run and the data folder, so that the review page does not show it")
    return path


def _reduced(picture: Image.Image, side: int) -> Image.Image:
    picture.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return picture
