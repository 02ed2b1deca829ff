"""Read image and mask files, from folders or tars: any mode of image becomes RGB, and a broken file a clear error."""

import contextlib
import io
import ntpath
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Num, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from tagseg.data.records import VOID, CocoMask, Dataset, Sample
from tagseg.data.segmentations import draw
from tagseg.data.tars import open_member
from tagseg.errors import DataError
from tagseg.system.untrusted import require_regular

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
"""Suffixes of the files that are read as images, in lower case."""

# An explicit list, because Pillow starts other programs for some formats (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")

# What Pillow raises for damaged files: it differs from format to format.
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

AnyImage = str | os.PathLike[str] | Image.Image | Shaped[np.ndarray, "..."]
"""An image as users have it: a file, a Pillow image or an array."""

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
    """Return an image as RGB: upright by its EXIF orientation, on white if transparent, 16 bits scaled to 8.

    To save time and memory, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, if its sides keep `enough` pixels.
    `content` are the bytes of an image that is not a file; messages then call it `path`.

    Raises:
        DataError: when the file is missing, not an image, damaged, or larger than `max_megapixels` (checked before
            decoding).
    """
    with _damage_named(path), _open(path, max_megapixels, content=content) as image:
        if enough is not None:
            image.draft("RGB", (enough, enough))
        return _rgb(_upright(image))


def any_image(image: AnyImage) -> Image.Image:
    """Return a file, a Pillow image or an array of uint8 (RGB, RGBA or grey) as RGB, upright like `read_image`.

    Raises:
        DataError: as for `read_image`, and for an array of another type or shape.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        with _damage_named(getattr(image, "filename", "") or "image"):
            upright = _upright(image)
            return upright if upright.mode == "RGB" and not upright.has_transparency_data else _rgb(upright)
    shape = tuple(getattr(image, "shape", ()))
    fits = len(shape) in (2, 3) and 0 not in shape and shape[2:] in ((), (1,), (3,), (4,))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or not fits:
        got = f"{type(image).__name__} of {getattr(image, 'dtype', 'no dtype')} and shape {shape}"
        raise DataError(
            f"image: got {got}, expected a file, a Pillow image, or an array of uint8 of height x width x 3"
        )
    return _rgb(Image.fromarray(image[..., 0] if shape[2:] == (1,) else np.ascontiguousarray(image)))


def image_size(path: Path, max_megapixels: float = _MAX_MEGAPIXELS) -> tuple[int, int]:
    """Decode an image as cheaply as its format allows and return its (height, width) in pixels, turned by EXIF.

    Raises:
        DataError: as for `read_image`.
    """
    with _damage_named(path), _open(path, max_megapixels) as image:
        width, height = image.size
        # The decoder still reads every byte of a JPEG, but computes only 1/8 of each side.
        image.draft("L", (max(width // 8, 1), max(height // 8, 1)))
        image.load()
        return (width, height) if _orientation(image) >= 5 else (height, width)


def read_mask_file(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
    """Return the palette indices or grey values of a mask PNG.

    Raises:
        DataError: when the file is missing, not a PNG, damaged, in colour, 16-bit, or not of `size` (height, width).
    """
    most = _MAX_MEGAPIXELS if size is None else float("inf")
    with _damage_named(path, "mask"), _open(path, most, formats=("PNG",)) as image:
        if image.mode not in ("P", "L", "1"):
            raise DataError(f"{path}: a mask of mode {image.mode}, expected class ids in a palette or 8-bit grey PNG")
        if size is not None:
            _require_size(path, (image.height, image.width), size)
        return np.array(image).astype(np.uint8)


class MaskPixels(NamedTuple):
    """The pixels of a mask from another tool.

    values: grey values or palette indices; None if its pixels are colours that are not grey. colours: 0xRRGGBB, black
    where it is transparent; None if it is grey. palette: whether the values are indices.
    """

    values: UInt8[np.ndarray, "h w"] | None
    colours: Int32[np.ndarray, "h w"] | None
    palette: bool


def read_mask_pixels(path: Path, size: tuple[int, int] | None = None) -> MaskPixels:
    """Return the pixels of a mask PNG of any 8-bit mode; in black and white, white is 255.

    Raises:
        DataError: when the file is missing, not a PNG, damaged, 16-bit, or not of `size` (height, width).
    """
    most = _MAX_MEGAPIXELS if size is None else float("inf")
    with _damage_named(path, "mask"), _open(path, most, formats=("PNG",)) as image:
        if image.mode not in ("1", "L", "P", "RGB", "LA", "PA", "RGBA"):
            raise DataError(f"{path}: a mask of mode {image.mode}, expected a PNG of 8 bits: colour, palette or grey")
        if size is not None:
            _require_size(path, (image.height, image.width), size)
        if image.mode in ("1", "L"):
            return MaskPixels(np.array(image.convert("L")), None, False)
        indices = np.array(image).astype(np.uint8) if image.mode == "P" else None
        layer = image.convert("RGBA")
        rgb = np.array(Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer))[..., :3]
    colours = rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    grey = indices is None and bool((rgb == rgb[..., :1]).all())
    return MaskPixels(rgb[..., 0] if grey else indices, colours, indices is not None)


def read_saliency(path: Path, size: tuple[int, int], max_megapixels: float = _MAX_MEGAPIXELS) -> Image.Image:
    """Return a saliency map as grey values (0 background, 255 salient), resized to `size` (height, width).

    Raises:
        DataError: as for `read_image`.
    """
    grey = read_image(path, max_megapixels).convert("L")
    return grey if grey.size == size[::-1] else grey.resize(size[::-1], Image.Resampling.BILINEAR)


def load_mask(sample: Sample, dataset: Dataset, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
    """Return a sample's true mask in class ids: 0 background, 255 void, 1..C.

    COCO objects are painted from large to small; crowds are void, except where there is an object. `size` is the
    image's (height, width) in pixels.

    Raises:
        DataError: when the mask cannot be read, has an unknown id, or is not of `size`.
    """
    assert sample.mask is not None, f"{sample.id} has no mask"
    if isinstance(sample.mask, CocoMask):
        if size is not None:
            _require_size(sample.image, (sample.mask.height, sample.mask.width), size)
        return draw(sample.mask, sample.image)
    values = read_mask_file(sample.mask, size)
    ids = dataset.mask_ids if dataset.mask_ids is not None else {i: i for i in range(1, len(dataset.classes) + 1)}
    known = {0: 0, VOID: VOID, **ids}
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
    """Return the path of the image `name` in the first of `folders` that has it; `name` may lack the suffix.

    Raises:
        DataError: starting with `where`, when the file is missing, or outside `root` because of `..` or a link.
    """
    name = name.replace("\\", "/")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ntpath.splitdrive(name)[0] or ".." in pure.parts:
        raise DataError(f"{where}: image {name!r} leaves the data folder, expected a path inside it")
    suffixes = [""] if pure.suffix.lower() in IMAGE_SUFFIXES else ["", *IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)]
    for folder in folders:
        for suffix in suffixes:
            path = f"{folder}/{name}{suffix}"
            # os.path.isfile is false for names that no file can have; Path.is_file raises.
            if os.path.isfile(path):
                return inside(root, Path(path), where)
    looked = " and ".join(str(folder) for folder in folders)
    raise DataError(f"{where}: image {name!r} is missing; looked in {looked}")


def inside(root: Path, path: Path, where: str) -> Path:
    """Return `path`, or raise DataError if it is outside `root` after links are followed."""
    # Compared as text: for a million images, making and comparing Path objects would take most of the time.
    if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), "")):
        raise DataError(f"{where}: {path} is a link that leaves the data folder, expected a file inside {root}")
    return path


def _open(
    path: Path | str, max_megapixels: float, formats: tuple[str, ...] = _FORMATS, content: bytes | None = None
) -> Image.Image:
    """Open an image and read only its header."""
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
    """Return the EXIF orientation, 1 to 8, of a decoded image (decoders that turn images have removed it by then)."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGE:  # a damaged EXIF block does not make the image unusable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF orientation says, and without it; one that is upright stays the same."""
    image.load()
    turn = _TURNS.get(_orientation(image))
    if turn is None:
        return image
    upright = image.transpose(turn)
    # Pillow keeps what says how to turn the image, and the next reader would turn it again.
    for name in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        upright.info.pop(name, None)
    return upright


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: Num[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Scale grey values to 0..255: from the range of a type that they fit, or else from their own range."""
    grey = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 255:
        top = 1.0 if high <= 1 else 255.0
    elif low >= 0 and high <= 65535:
        top = 65535.0
    else:
        grey, top = grey - low, high - low or 1.0
    return np.rint(grey * 255.0 / top).astype(np.uint8)


def _require_size(path: Path, mask: tuple[int, int], image: tuple[int, int]) -> None:
    if mask != image:
        raise DataError(
            f"{path}: the mask has {mask[1]} x {mask[0]} pixels, expected {image[1]} x {image[0]} as in its image"
        )


@contextlib.contextmanager
def _damage_named(path: Path | str, kind: str = "image") -> Iterator[None]:
    """Turn what Pillow raises for a damaged file into a DataError with its name."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: damaged {kind} ({error})") from error
