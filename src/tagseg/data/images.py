"""Read image and mask files, from folders or tars: any mode of image becomes RGB, and a broken file a clear error."""

import contextlib
import io
import os
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num, Shaped, UInt8
from PIL import Image, UnidentifiedImageError, features

from tagseg.data.tars import open_member
from tagseg.errors import DataError
from tagseg.system.untrusted import require_regular

_HEIF = (".heic", ".heif")
_AVIF_READ, _HEIF_READ = features.check("avif"), find_spec("pillow_heif") is not None

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"),
    *((".avif",) if _AVIF_READ else ()),
    *(_HEIF if _HEIF_READ else ()),
)
"""Suffixes of the files that are read as images, in lower case."""

UNREAD_SUFFIXES = {
    **({} if _AVIF_READ else {".avif": ": install a Pillow that reads AVIF (11.3 or newer)"}),
    **({} if _HEIF_READ else dict.fromkeys(_HEIF, ": pip install 'tagseg[heic]' or pillow-heif")),
    **dict.fromkeys((".jp2", ".jxl", ".svg", ".psd", ".ico", ".tga", ".exr", ".hdr"), ": convert them to PNG"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"), ": develop them to JPEG or TIFF"),
}
"""Suffixes of images that are not read, in lower case, and what to do."""

# An explicit list, because Pillow starts other programs for some formats (EPS).
_FORMATS = (
    *("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"),
    *(("AVIF",) if _AVIF_READ else ()),
)

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

MAX_MEGAPIXELS = 120.0
"""Larger images are refused unless a setting allows them."""
_TOPS = (255, 1023, 4095, 16383, 65535)
"""Largest values of 8, 10, 12, 14 and 16 bits."""

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
    path: Path | str, max_megapixels: float = MAX_MEGAPIXELS, enough: int | None = None, content: bytes | None = None
) -> Image.Image:
    """Return an image as RGB: upright by its EXIF orientation, on white if transparent, 16 bits scaled to 8.

    To save time and memory, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, if its sides keep `enough` pixels.
    `content` are the bytes of an image that is not a file; messages then call it `path`.

    Raises:
        DataError: when the file is missing, not an image, damaged, or larger than `max_megapixels` (checked before
            decoding).
    """
    with damage_named(path), opened_image(path, max_megapixels, content=content) as image:
        if enough is not None:
            image.draft("RGB", (enough, enough))
        swapped = _deep_tiles(image)
        image.load()
        turn = _TURNS.get(_orientation(image))
        if swapped is not None and np.asarray(image)[..., :3].max() < 64:  # not all of the 16 bits are used
            with opened_image(path, max_megapixels, content=content) as again:
                again.tile = swapped  # type: ignore[attr-defined]
                plain = _stretched(image, again)
        else:
            plain = image
        return _rgb(_turned(plain, turn))


def any_image(image: AnyImage) -> Image.Image:
    """Return a file, a Pillow image or an array of uint8 (RGB, RGBA or grey) as RGB, upright like `read_image`.

    Raises:
        DataError: as for `read_image`, and for an array of another type or shape.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        with damage_named(getattr(image, "filename", "") or "image"):
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


def image_size(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[int, int]:
    """Decode an image as cheaply as its format allows and return its (height, width) in pixels, turned by EXIF.

    Raises:
        DataError: as for `read_image`.
    """
    return measure(path, max_megapixels)[0]


def measure(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[tuple[int, int], bool]:
    """Return the (height, width) of an image like `image_size`, and whether it has more than 8 bits per channel.

    Raises:
        DataError: as for `read_image`.
    """
    with damage_named(path), opened_image(path, max_megapixels) as image:
        width, height = image.size
        # The decoder still reads every byte of a JPEG, but computes only 1/8 of each side.
        image.draft("L", (max(width // 8, 1), max(height // 8, 1)))
        deep = image.mode.startswith("I") or _deep_tiles(image) is not None
        image.load()
        return ((width, height) if _orientation(image) >= 5 else (height, width)), deep


def read_mask_file(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
    """Return the palette indices or grey values of a mask PNG.

    Raises:
        DataError: when the file is missing, not a PNG, damaged, in colour, 16-bit, or not of `size` (height, width).
    """
    most = MAX_MEGAPIXELS if size is None else float("inf")
    with damage_named(path, "mask"), opened_image(path, most, formats=("PNG",)) as image:
        if image.mode not in ("P", "L", "1"):
            raise DataError(f"{path}: a mask of mode {image.mode}, expected class ids in a palette or 8-bit grey PNG")
        if size is not None:
            require_size(path, (image.height, image.width), size)
        return np.array(image).astype(np.uint8)


def read_saliency(path: Path, size: tuple[int, int], max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """Return a saliency map as grey values (0 background, 255 salient), resized to `size` (height, width).

    Raises:
        DataError: as for `read_image`.
    """
    grey = read_image(path, max_megapixels).convert("L")
    return grey if grey.size == size[::-1] else grey.resize(size[::-1], Image.Resampling.BILINEAR)


def require_size(path: Path, mask: tuple[object, object], image: tuple[int, int]) -> None:
    """Raise DataError if a mask's (height, width) is not that of its image."""
    if mask != image:
        raise DataError(
            f"{path}: the mask has {mask[1]} x {mask[0]} pixels, expected {image[1]} x {image[0]} as in its image"
        )


def inside(root: Path, path: Path, where: str) -> Path:
    """Return `path`, or raise DataError if it is outside `root` after links are followed."""
    # Compared as text: for a million images, making and comparing Path objects would take most of the time.
    if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), "")):
        raise DataError(f"{where}: {path} is a link that leaves the data folder, expected a file inside {root}")
    return path


def opened_image(
    path: Path | str, max_megapixels: float, formats: tuple[str, ...] = _FORMATS, content: bytes | None = None
) -> Image.Image:
    """Open an image and read only its header."""
    try:
        member = open_member(Path(path)) if content is None else io.BytesIO(content)
        if member is None:
            require_regular(Path(path))
        if _HEIF_READ and str(path).lower().endswith(_HEIF):
            formats = _heif()
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


def _heif() -> tuple[str, ...]:
    import pillow_heif

    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, of a decoded image (decoders that turn images have removed it by then)."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGE:  # a damaged EXIF block does not make the image unusable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF orientation says; one that is upright stays the same."""
    image.load()
    return _turned(image, _TURNS.get(_orientation(image)))


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
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


def _deep_tiles(image: Image.Image) -> list[Any] | None:
    """Return the tiles of a colour image of 16 bits per channel so that they decode the low bytes; None for others.

    Pillow decodes the high bytes, which are almost 0 in an image that uses only 10 or 12 of the 16 bits.
    """
    tiles = []
    for tile in getattr(image, "tile", ()):
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        found = re.fullmatch("(RGBA?;16)([BLN])", str(args[0])) if args else None
        if found is None:
            return None
        order = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[found[2]]
        rest = (found[1] + order, *args[1:])
        tiles.append(tile._replace(args=rest if isinstance(tile.args, tuple) else rest[0]))
    return tiles or None


def _stretched(high: Image.Image, low: Image.Image) -> Image.Image:
    """Return an image of 8 bits per channel from the high and the low bytes of one that uses less than 16 bits."""
    low.load()
    values = np.asarray(high)[..., :3].astype(np.float64) * 256 + np.asarray(low)[..., :3]
    scaled = Image.fromarray(_eight_bits(values.astype(np.int64)))
    if "A" in high.getbands():
        scaled.putalpha(high.getchannel("A"))
    return scaled


def _eight_bits(values: Num[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w *c"]:
    """Scale values to 0..255: from the fewest bits (8, 10, 12, 14, 16) that they fit, or else their own range."""
    grey = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 255:
        top = 1.0 if high <= 1 else 255.0
    elif low >= 0 and high <= 65535:
        top = float(next(most for most in _TOPS if most >= high))
    else:
        grey, top = grey - low, high - low or 1.0
    return np.rint(grey * 255.0 / top).astype(np.uint8)


@contextlib.contextmanager
def damage_named(path: Path | str, kind: str = "image") -> Iterator[None]:
    """Turn what Pillow raises for a damaged file into a DataError with its name."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path}: damaged {kind} ({error})") from error
