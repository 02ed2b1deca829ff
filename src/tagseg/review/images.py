"""The review page's pictures: thumbnails, photos, and the masks over them, from the run and its data folder only."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tagseg.data.images import read_image, read_mask_file
from tagseg.errors import DataError
from tagseg.masks.make import mask_sample
from tagseg.masks.map_files import map_file
from tagseg.masks.mask_files import mask_file
from tagseg.masks.overlay import overlay
from tagseg.report.overlay import draw_mask, encoded
from tagseg.review.queue import Queue, ReviewItem, tagged_item
from tagseg.run.decisions import Decision, MaskPair
from tagseg.run.folder import Run
from tagseg.run.taught import fixed_parts

if TYPE_CHECKING:
    from tagseg.segment.predictor import Predictor

PHOTO_SIDE = 1280
"""Long side of the mask, and largest long side of the photo, in pixels."""

THUMB_SIDE = 144
"""Long side of a thumbnail, in pixels."""

THUMBS, PHOTOS, MASKS = 3000, 24, 64
"""How many of each are kept in memory: about 15 MB, 10 MB, and a few MB, since masks compress well."""


@dataclass(frozen=True)
class QueuePictures:
    """Makes the pictures of an image, given its place in the queue, and keeps recent ones in memory.

    thumb: JPEG of the photo with the run's mask. photo: JPEG. masks: the mask without and the mask with unsure pixels
    (255), at the image's own size, without the classes that are off and by the threshold; the last argument are the
    numbers of its clicks and strokes. network: the mask of the run's segmentation network for some tags,
    which leaves no pixel unsure.
    """

    thumb: Callable[[int], bytes]
    photo: Callable[[int], bytes]
    masks: Callable[[int, tuple[int, ...], float, bool, tuple[int, ...]], MaskPair]
    network: Callable[[int, tuple[int, ...]], MaskPair]


def queue_pictures(queue: Queue) -> QueuePictures:
    """Return the functions that make a queue's pictures.

    They raise DataError or RunError when a file cannot be read, or is outside the run and the data folder.
    """
    # Making a mask uses all cores for a moment; the lock also keeps one mask from being made twice at once.
    one_at_a_time = Lock()
    # A browser requests many pictures at once, and decoding a large photo takes much memory.
    two_at_a_time = BoundedSemaphore(2)

    def jpeg(place: int, side: int, quality: int, masked: bool = False) -> bytes:
        path = own_file(queue, queue.items[place].sample.image)
        with two_at_a_time:
            picture = read_image(path, queue.settings.data.max_megapixels, side)
            picture.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        return encoded(_masked(queue, place, picture) if masked else picture, "jpeg", quality=quality)

    @lru_cache(maxsize=THUMBS)
    def thumb(place: int) -> bytes:
        return jpeg(place, THUMB_SIDE, quality=75, masked=True)

    @lru_cache(maxsize=PHOTOS)
    def photo(place: int) -> bytes:
        return jpeg(place, PHOTO_SIDE, quality=88)

    @lru_cache(maxsize=MASKS)
    def predicted(place: int, tags: tuple[int, ...]) -> bytes:
        item = queue.items[place]
        image = read_image(own_file(queue, item.sample.image), queue.settings.data.max_megapixels)
        labels = (0, *tags)
        return zlib.compress(network_labels(queue.run, image, labels, item.size).tobytes(), 1)

    def network(place: int, tags: tuple[int, ...]) -> MaskPair:
        with one_at_a_time:
            found = predicted(place, tags)
        mask = np.frombuffer(zlib.decompress(found), np.uint8).reshape(queue.items[place].size)
        return mask, mask

    @lru_cache(maxsize=MASKS)
    def packed(
        place: int, off: tuple[int, ...], threshold: float, fresh: bool, parts: tuple[int, ...]
    ) -> tuple[bytes, bytes]:
        item = queue.items[place]
        item = tagged_item(queue, item, fixed_parts(queue.run, item.sample.id).values())
        decided, sure = preview_masks(queue, item, off, threshold, fresh)
        return zlib.compress(decided.tobytes(), 1), zlib.compress(sure.tobytes(), 1)

    def masks(place: int, off: tuple[int, ...], threshold: float, fresh: bool, parts: tuple[int, ...]) -> MaskPair:
        with one_at_a_time:
            both = packed(place, off, threshold, fresh, parts)
        size = queue.items[place].size
        decided, sure = (np.frombuffer(zlib.decompress(one), np.uint8).reshape(size) for one in both)
        return decided, sure

    return QueuePictures(thumb, photo, masks, network)


def network_labels(
    run: Run, image: Image.Image, labels: tuple[int, ...], size: tuple[int, int]
) -> UInt8[np.ndarray, "H W"]:
    """Return which of the `labels` a run's segmentation network sees at each pixel of an image of (height, width)
    `size`.

    Raises:
        RunError: when the run has no trained network.
    """
    run.require("segment")
    import torch  # here, because the review page does without it otherwise
    import torch.nn.functional as F

    from tagseg.segment.self_training import predict_tags

    shares = torch.from_numpy(predict_tags(_predictor(run), image, labels[1:]))
    best = F.interpolate(shares[None], size, mode="bilinear")[0].argmax(0)
    mask: UInt8[np.ndarray, "H W"] = np.asarray(labels, np.uint8)[best.numpy()]
    return mask


@lru_cache(maxsize=1)
def _predictor(run: Run) -> "Predictor":
    from tagseg.segment.read_network import read_predictor

    return read_predictor(run.segmenter, run.settings().device)


def _masked(queue: Queue, place: int, picture: Image.Image) -> Image.Image:
    """Return a small picture with the run's mask painted over it; as it is if the mask cannot be read."""
    file = mask_file(queue.source.masks, queue.items[place].sample.id)
    try:
        mask = Image.fromarray(read_mask_file(own_file(queue, file)))
    except DataError:
        return picture
    small = np.asarray(mask.resize(picture.size, Image.Resampling.NEAREST))
    return overlay(picture, small)


def preview_masks(queue: Queue, item: ReviewItem, off: tuple[int, ...], threshold: float, fresh: bool) -> MaskPair:
    """Return an image's masks from the run, or with `fresh`, masks made again from its maps.

    Fresh masks leave out the classes that are off and use the threshold.

    Raises:
        DataError: when a file cannot be read, or is outside the run and the data folder.
        RunError: when the image's maps are missing.
    """
    sample, source = item.sample, queue.source
    if fresh:
        for path in (sample.image, map_file(source, sample.id)):
            own_file(queue, path)
        return mask_sample(source, sample, item.size, queue.settings, Decision("open", off, threshold))
    decided, sure = (
        read_mask_file(own_file(queue, mask_file(folder, sample.id)), item.size)
        for folder in (source.decided_masks, source.masks)
    )
    return decided, sure


def draw_overlay(masks: MaskPair) -> bytes:
    """Return the mask with unsure pixels as a transparent PNG with a long side of `PHOTO_SIDE`."""
    _, sure = masks
    scale = PHOTO_SIDE / max(sure.shape)
    height, width = (max(round(side * scale), 1) for side in sure.shape)
    return encoded(draw_mask(sure, width, height, stripe=7), "png", transparency=0, compress_level=3)


def own_file(queue: Queue, path: Path) -> Path:
    """Return a path if it is inside the run or the data folder, after following links.

    Raises:
        DataError: when it is outside of both.
    """
    real = path.resolve()
    if not any(real.is_relative_to(folder) for folder in (queue.data, queue.run.root.resolve())):
        raise DataError(f"{path}: leads outside the run and the data folder, so the review page does not show it")
    return path
