"""Read masks as class ids: from PNGs and other lossless files by value or colour, and from COCO annotations."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from tagseg.data.images import MAX_MEGAPIXELS, damage_named, opened_image, require_size
from tagseg.data.mask_values import VOID_CODE, voc_colour
from tagseg.data.records import VOID, CocoMask, Dataset, Sample
from tagseg.data.segmentations import draw
from tagseg.data.tars import content_mark, marks_digest
from tagseg.errors import DataError

_FORMATS = ("PNG", "BMP", "TIFF", "GIF", "JPEG")
_MANY = 12
"""A mask with more unknown values than this was smoothed or compressed."""


def load_mask(sample: Sample, dataset: Dataset, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
    """Return a sample's true mask in class ids: 0 background, 255 void, 1..C.

    Palette files are read by the colours that `dataset.mask_colours` names, or else by value; a palette in which VOC's
    colours are in another order is refused. RGB files are read by colour (without `mask_colours`, by VOC's colours).
    COCO objects are painted from large to small; crowds are void, except where there is an object. `size` is the
    image's (height, width) in pixels.

    Raises:
        DataError: when the mask cannot be read, has an unknown value or colour, or is not of `size`.
    """
    assert sample.mask is not None, f"{sample.id} has no mask"
    if isinstance(sample.mask, CocoMask):
        if size is not None:
            require_size(sample.image, (sample.mask.height, sample.mask.width), size)
        return draw(sample.mask, sample.image)
    pixels = read_mask_pixels(sample.mask, size)
    values = value_ids(dataset)
    named = {0: 0, VOID_CODE: VOID, **dataset.mask_colours} if dataset.mask_colours else {}
    colours = named or {VOID_CODE if value == VOID else voc_colour(value): one for value, one in values.items()}
    if pixels.values is None:
        assert pixels.colours is not None
        return _translated(sample.mask, pixels.colours, colours, dataset, grey=False)
    if pixels.colours is not None and (named or pixels.palette is None):
        by_colour, unknown = _looked_up(pixels.colours, colours)
        if not len(unknown):
            return by_colour
    if pixels.palette is not None and not named:
        _require_order(sample.mask, pixels.values, pixels.palette, colours)
    return _translated(sample.mask, pixels.values, values, dataset, grey=True)


def truth_digest(dataset: Dataset) -> str:
    """Return a checksum of the true masks that are scored, by which added, removed and replaced ones are noticed
    without reading them all (see `content_mark`)."""
    return marks_digest(
        (sample.id, repr(sample.mask) if isinstance(sample.mask, CocoMask) else content_mark(sample.mask))
        for sample in dataset.samples
        if sample.mask is not None and sample.scored
    )


def value_ids(dataset: Dataset) -> dict[int, int]:
    """Return the class id of every value that a mask file of a data set may hold."""
    ids = dataset.mask_ids if dataset.mask_ids is not None else {i: i for i in range(1, len(dataset.classes) + 1)}
    return {0: 0, VOID: VOID, **ids}


class MaskPixels(NamedTuple):
    """The pixels of a mask.

    values: grey values or palette indices; None if its pixels are colours that are not grey. colours: 0xRRGGBB, black
    where it is transparent; None if it is grey. palette: the colour of every value if they are indices, else None.
    """

    values: UInt8[np.ndarray, "h w"] | None
    colours: Int32[np.ndarray, "h w"] | None
    palette: Int32[np.ndarray, "256"] | None


def read_mask_pixels(path: Path, size: tuple[int, int] | None = None) -> MaskPixels:
    """Return the pixels of a mask, a lossless file of any 8-bit mode; in black and white, white is 255.

    Raises:
        DataError: when the file is missing, lossy, damaged, 16-bit, or not of `size` (height, width).
    """
    most = MAX_MEGAPIXELS if size is None else float("inf")
    with damage_named(path, "mask"), opened_image(path, most, formats=_FORMATS) as image:
        if image.format == "JPEG":
            raise DataError(
                f"{path}: a mask as JPEG, expected a PNG: JPEG changes values and colours near edges, so that pixels "
                "would get other classes; export the masks as PNG"
            )
        if image.mode not in ("1", "L", "P", "RGB", "LA", "PA", "RGBA"):
            raise DataError(f"{path}: a mask of mode {image.mode}, expected a PNG of 8 bits: colour, palette or grey")
        if size is not None:
            require_size(path, (image.height, image.width), size)
        if image.mode in ("1", "L"):
            return MaskPixels(np.array(image.convert("L")), None, None)
        if image.mode == "P":
            indices = np.array(image).astype(np.uint8)
            every = image.resize((256, 1), Image.Resampling.NEAREST)  # an image of the same palette
            every.putdata(range(256))
            palette = _codes(_on_black(every))[0]
            return MaskPixels(indices, palette[indices], palette)
        rgb = _on_black(image)
    grey = bool((rgb == rgb[..., :1]).all())
    return MaskPixels(rgb[..., 0] if grey else None, _codes(rgb), None)


def _on_black(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    layer = image.convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer))[..., :3]


def _codes(rgb: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
    codes: Int32[np.ndarray, "h w"] = rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    return codes


def _looked_up(
    pixels: UInt8[np.ndarray, "h w"] | Int32[np.ndarray, "h w"], known: Mapping[int, int]
) -> tuple[UInt8[np.ndarray, "h w"], Int32[np.ndarray, "n"]]:
    """Return the ids of known values or colours, and the values that are not known (their pixels get any id)."""
    codes = np.array(sorted(known), np.int32)
    place = np.minimum(np.searchsorted(codes, pixels), len(codes) - 1)
    unknown = np.unique(pixels[codes[place] != pixels])
    return np.array([known[int(code)] for code in codes], np.uint8)[place], unknown.astype(np.int32)


def _translated(
    path: Path,
    pixels: UInt8[np.ndarray, "h w"] | Int32[np.ndarray, "h w"],
    known: Mapping[int, int],
    dataset: Dataset,
    grey: bool,
) -> UInt8[np.ndarray, "h w"]:
    mask, strange = _looked_up(pixels, known)
    if unknown := strange.tolist():
        names = {0: "background", VOID: "void", **dict(enumerate(dataset.classes, 1))}
        show = str if grey else _hex
        if grey:
            got = f"unknown ids {', '.join(map(show, unknown[:_MANY]))} in the mask"
            head = [str(value) for value in _USUAL if known.get(value) == value]
            rest = [
                f"{value} ({names[known[value]]})"
                for value in sorted(known)
                if known[value] != value or value not in _USUAL
            ]
            expected = " or ".join(filter(None, (", ".join(head), ", ".join(rest[:30]))))
        else:
            got = f"unknown colours {', '.join(map(show, unknown[:_MANY]))} in the mask"
            expected = ", ".join(f"{_hex(value)} ({names[known[value]]})" for value in sorted(known)[:30])
        many = (
            f"; it has {len(unknown)} such values: it was smoothed, resized or compressed, save it as PNG without that"
            if len(unknown) > _MANY
            else "; say what they mean with --data.mask-values, or with a labelmap.txt beside the masks"
        )
        raise DataError(f"{path}: {got}, expected {expected}{many}")
    return mask


_USUAL = (0, VOID)


def _require_order(
    path: Path, values: UInt8[np.ndarray, "h w"], palette: Int32[np.ndarray, "256"], colours: Mapping[int, int]
) -> None:
    """Raise DataError if a palette has VOC's colours of the classes for other values than VOC has."""
    # Counted, not sorted: this is read for every mask that is scored.
    used = np.bincount(values.ravel(), minlength=256).nonzero()[0]
    pairs = list(zip(used.tolist(), palette[used].tolist(), strict=True))
    ordered = all(colour == (VOID_CODE if value == VOID else voc_colour(value)) for value, colour in pairs)
    classes = any(colours.get(colour, 0) not in (0, VOID) for _, colour in pairs)
    if classes and not ordered and all(colour in colours for _, colour in pairs):
        listed = ", ".join(f"{value} is {_hex(colour)}" for value, colour in pairs[:10])
        raise DataError(
            f"{path}: its palette has VOC's colours in another order: {listed}; say what they mean with "
            "--data.mask-values, for example #800000=cat, or with a labelmap.txt beside the masks"
        )


def _hex(code: int) -> str:
    return f"#{code:06x}"
