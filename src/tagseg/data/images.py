"""Reading image and mask files, in folders or tars: every odd kind of image comes in as RGB, every broken one with a
clear message."""

import io
import ntpath
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image, UnidentifiedImageError

from tagseg.data.records import VOID, CocoMask, Dataset, Sample
from tagseg.data.segmentations import draw
from tagseg.data.tars import open_member
from tagseg.errors import DataError
from tagseg.system.untrusted import require_regular

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
"""Suffixes of files that are taken for images, in lower case."""

# Named one by one, because Pillow also knows formats that start other programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

# What Pillow raises, format by format, on files that are damaged.
_DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError),
    *(
        AssertionError,
        AttributeError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ),
)

_MAX_MEGAPIXELS = 120.0
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def reduction(size: tuple[int, int], max_side: int) -> float:
    """Return the factor, at most 1, that reduces the long side of an image of `size` to `max_side` pixels."""
    return min(1.0, max_side / max(size))


def reduced_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Return an image's size, with its sides in either order, reduced to a long side of `max_side` pixels.

    No side falls below one pixel.
    """
    factor = reduction(size, max_side)
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def read_image(
    path: Path | str, max_megapixels: float = _MAX_MEGAPIXELS, enough: int | None = None, content: bytes | None = None
) -> Image.Image:
    """Return an image as RGB, turned as its EXIF orientation says, transparent parts on white, 16 bits scaled to 8.

    Where sides of `enough` pixels are, a JPEG may come at a half, a quarter or an eighth of its size, which saves time
    and memory. What is no file has its `content` given; `path` is then what messages call it.

    Raises:
        DataError: when the file is missing, no image, damaged, or larger than `max_megapixels` (refused undecoded).
    """
    try:
        with _open(path, max_megapixels, content=content) as image:
            if enough is not None:
                image.draft("RGB", (enough, enough))
            image.load()
            turn = _TURNS.get(_orientation(image))
            upright = image if turn is None else image.transpose(turn)
            return _rgb(upright)
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: damaged image ({error})") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as `read_image` would, an RGB image as it is; its EXIF orientation is left alone."""
    return image if image.mode == "RGB" and not image.has_transparency_data else _rgb(image)


def image_size(path: Path, max_megapixels: float = _MAX_MEGAPIXELS) -> tuple[int, int]:
    """Decode an image as cheaply as its format allows and return its (height, width) after EXIF orientation, in pixels.

    Raises:
        DataError: as for `read_image`.
    """
    try:
        with _open(path, max_megapixels) as image:
            width, height = image.size
            # The decoder still reads every byte of a JPEG, but computes an eighth of the side.
            image.draft("L", (max(width // 8, 1), max(height // 8, 1)))
            image.load()
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: damaged image ({error})") from error


def read_mask_file(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
    """Return the palette indices or grey values of a mask PNG as they are.

    Raises:
        DataError: when the file is missing, no PNG, damaged, in colour, 16-bit, or not of `size` (height, width).
    """
    try:
        with _open(path, _MAX_MEGAPIXELS if size is None else float("inf"), formats=("PNG",)) as image:
            if image.mode not in ("P", "L", "1"):
                raise DataError(
                    f"{path}: a mask of mode {image.mode}, expected class ids as a palette or 8-bit grey PNG"
                )
            if size is not None:
                _same_size(path, (image.height, image.width), size)
            return np.array(image).astype(np.uint8)
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: damaged mask ({error})") from error


def read_image_of_size(path: Path, size: tuple[int, int]) -> tuple[Image.Image, str]:
    """Return an image as `read_image` does, and the mode that it has in the file; it is decoded only when it has `size`
    (height, width).

    Raises:
        DataError: as for `read_image`, and when it is of another size.
    """
    try:
        with _open(path, float("inf")) as image:
            found, mode = (image.height, image.width), image.mode
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: damaged image ({error})") from error
    if found not in (size, size[::-1]):  # turned, perhaps
        _same_size(path, found, size)
    upright = read_image(path, float("inf"))
    _same_size(path, (upright.height, upright.width), size)
    return upright, mode


def read_saliency(path: Path, size: tuple[int, int], max_megapixels: float = _MAX_MEGAPIXELS) -> Image.Image:
    """Return a saliency map as grey values (0 background, 255 salient), enlarged or reduced to `size` (height, width).

    Raises:
        DataError: as for `read_image`.
    """
    grey = read_image(path, max_megapixels).convert("L")
    return grey if grey.size == size[::-1] else grey.resize(size[::-1], Image.Resampling.BILINEAR)


def load_mask(sample: Sample, dataset: Dataset, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
    """Return a sample's true mask in class ids: 0 background, 255 void, 1..C.

    COCO objects are painted large before small; crowds are void where no object lies. `size` is the image's (height,
    width) in pixels.

    Raises:
        DataError: when the mask cannot be read, holds ids that are no class, or is not of `size`.
    """
    assert sample.mask is not None, f"{sample.id} has no mask"
    if isinstance(sample.mask, CocoMask):
        if size is not None:
            _same_size(sample.image, (sample.mask.height, sample.mask.width), size)
        return draw(sample.mask, sample.image)
    values = read_mask_file(sample.mask, size)
    ids = dataset.mask_ids if dataset.mask_ids is not None else {i: i for i in range(1, len(dataset.classes) + 1)}
    known = {**ids, 0: 0, VOID: VOID}
    unknown = [int(value) for value in np.unique(values) if int(value) not in known]
    if unknown:
        raise DataError(
            f"{sample.mask}: unknown ids {', '.join(map(str, unknown))} in the mask, expected 0, 255 or "
            + ", ".join(f"{value} ({dataset.classes[ids[value] - 1]})" for value in sorted(ids)[:30])
        )
    table = np.zeros(256, np.uint8)
    table[list(known)] = list(known.values())
    mask: UInt8[np.ndarray, "h w"] = table[values]
    return mask


def find_image(root: Path, folders: Sequence[Path], name: str, where: str) -> Path:
    """Return the image `name` (its suffix may be left out) from the first of `folders` that has it.

    Raises:
        DataError: starting with `where`, when there is no such file or it lies outside `root`, by `..` or by a link.
    """
    name = name.replace("\\", "/")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ntpath.splitdrive(name)[0] or ".." in pure.parts:
        raise DataError(f"{where}: image {name!r} leaves the data folder, expected a path below it")
    suffixes = [""] if pure.suffix.lower() in IMAGE_SUFFIXES else ["", *IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)]
    for folder in folders:
        for suffix in suffixes:
            path = f"{folder}/{name}{suffix}"
            # os.path, unlike Path, answers False for names that no file can have.
            if os.path.isfile(path):
                return inside(root, Path(path), where)
    looked = " and ".join(str(folder) for folder in folders)
    raise DataError(f"{where}: image {name!r} is missing, expected a file in {looked}")


def inside(root: Path, path: Path, where: str) -> Path:
    """Return `path`, or raise DataError when it lies outside `root` once links are followed."""
    # As text: of a million images, paths that are made and compared would take most of the time.
    if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), "")):
        raise DataError(f"{where}: {path} is a link that leaves the data folder, expected a file below {root}")
    return path


def _open(
    path: Path | str, max_megapixels: float, formats: tuple[str, ...] = _FORMATS, content: bytes | None = None
) -> Image.Image:
    """Open an image and read its header only."""
    try:
        member = open_member(Path(path)) if content is None else io.BytesIO(content)
        if member is None:
            require_regular(Path(path))
        image = Image.open(member or path, formats=formats)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image, expected {', '.join(formats)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: too large ({error}), expected at most {max_megapixels:g} megapixels") from error
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        image.close()
        raise DataError(
            f"{path}: too large, {image.width} x {image.height} pixels are {megapixels:.3g} megapixels, expected "
            f"at most {max_megapixels:g} (setting data.max-megapixels)"
        )
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8 of a decoded image (formats that turn themselves have dropped it by then)."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGE:  # a damaged EXIF block is no reason to lose the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: Num[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Scale grey values to 0..255: from the range of their type where they fit one, else from their own range."""
    grey = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 255:
        top = 1.0 if high <= 1 else 255.0
    elif low >= 0 and high <= 65535:
        top = 65535.0
    else:
        grey, top = grey - low, high - low or 1.0
    return np.rint(grey * 255.0 / top).astype(np.uint8)


def _same_size(path: Path, mask: tuple[int, int], image: tuple[int, int]) -> None:
    if mask != image:
        raise DataError(
            f"{path}: mask of another size, {mask[1]} x {mask[0]} pixels, expected the image's {image[1]} x {image[0]}"
        )
