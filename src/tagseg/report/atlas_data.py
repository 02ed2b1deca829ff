"""The contents of the atlas, computed and drawn: entries with their prototypes, likely confusions, new images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image

from tagseg.data.images import read_image, reduced_size
from tagseg.rca.network import RcaNetwork
from tagseg.report.bank_view import Area, EntryPair, Memory, NearestRegions
from tagseg.report.crops import OutlineColour, crop_region, outline_regions
from tagseg.report.overlay import data_uri

WORKING_SIDE = 960
"""Larger photos are reduced to this long side, in pixels, before regions are cropped."""

IMAGE_SIDE = 600
"""Long side of a new image on the page, in pixels."""

MOST_CROPS = 840
"""About how many regions are shown for all prototypes together; more would make the page larger than about 8 MB."""

CROPS = 6
"""Most regions shown per prototype; with many classes it is half as many, and some prototypes are left out."""

PAIR_CROPS, AREA_CROPS = 4, 3
"""Regions shown for each class of a likely confusion, and for an area of a new image."""

MOST_AREAS, MOST_BARS, MOST_OTHERS = 8, 4, 3

SMALLEST_BAR = 0.01
"""Entries with a smaller share of the attention are shown together as all others."""


@dataclass(frozen=True)
class CropPicture:
    """The picture of a training region; `entry` is its label, `nearer` an entry with a nearer prototype, if any."""

    picture: str
    width: int
    height: int
    entry: int
    name: str
    tags: tuple[int, ...]
    similarity: float
    nearer: int | None


Draw = Callable[[int, int], CropPicture]
"""Draws a region, given its index among the nearest regions and a prototype of its label."""


@dataclass(frozen=True)
class Prototype:
    """A prototype: its share of the entry's slots, the number of its regions, and pictures of the nearest ones."""

    share: float
    regions: int
    crops: tuple[CropPicture, ...]


@dataclass(frozen=True)
class AtlasEntry:
    """An entry of the bank.

    filled: its filled slots. count: its prototypes. prototypes: those shown. unmatched: how many have no region.
    left_out: how many are left out to keep the page small. regions: its regions. own: the share of them that are
    nearest to one of its own prototypes. others: the entries nearest to most of the other regions, with their shares.
    """

    id: int
    filled: int
    count: int
    prototypes: tuple[Prototype, ...]
    unmatched: int
    left_out: int
    regions: int
    own: float
    others: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Confusion:
    """Two entries with similar prototypes, and for each the regions nearest to its prototype."""

    entries: tuple[int, int]
    similarity: float
    sides: tuple[tuple[CropPicture, ...], tuple[CropPicture, ...]]


@dataclass(frozen=True)
class Attention:
    """An area of a new image.

    entry: the entry that gets most of its attention. at: where its number is drawn, in pixels of the whole picture.
    picture, size: its own picture. bars: the entries that get most of its attention, with their shares (None: all
    others). similarity: its cosine with the prototype that it attends to most. crops: the regions nearest to that
    prototype.
    """

    entry: int
    at: tuple[int, int]
    picture: str
    size: tuple[int, int]
    bars: tuple[tuple[int | None, float], ...]
    similarity: float
    crops: tuple[CropPicture, ...]


@dataclass(frozen=True)
class NewImage:
    """A new image with its areas outlined, and the number of smaller areas that are not shown."""

    name: str
    picture: str
    size: tuple[int, int]
    areas: tuple[Attention, ...]
    left_out: int


def crop_budget(memory: Memory) -> tuple[int, int]:
    """Return how many prototypes per entry and how many regions per prototype fit on the page."""
    entries, most = int(memory.exists.any(1).sum()), int(memory.exists.sum(1).max())
    crops = min(CROPS, max(CROPS // 2, MOST_CROPS // (entries * most)))
    return min(most, max(1, MOST_CROPS // (entries * crops))), crops


def show_entry(memory: Memory, regions: NearestRegions, entry: int, draw: Draw) -> AtlasEntry:
    """Return what the page shows of an entry, the prototypes with the largest share of the slots first."""
    most, each = crop_budget(memory)
    held = memory.exists[entry].nonzero().flatten().tolist()
    held.sort(key=lambda prototype: -float(memory.share[entry, prototype]))
    members = {prototype: regions.members(entry, prototype) for prototype in held}
    matched = [prototype for prototype in held if members[prototype]]
    shown = [
        Prototype(
            float(memory.share[entry, prototype]),
            len(members[prototype]),
            tuple(draw(index, prototype) for index in members[prototype][:each]),
        )
        for prototype in matched[:most]
    ]
    nearest = regions.nearest[regions.label == entry]
    shares = torch.bincount(nearest, minlength=len(memory.filled)) / max(len(nearest), 1)
    order = [other for other in shares.argsort(descending=True).tolist() if other != entry and shares[other] > 0]
    return AtlasEntry(
        entry,
        int(memory.filled[entry]),
        len(held),
        tuple(shown),
        len(held) - len(matched),
        len(matched) - len(shown),
        len(nearest),
        float(shares[entry]),
        tuple((other, float(shares[other])) for other in order[:MOST_OTHERS]),
    )


def show_pair(pair: EntryPair, regions: NearestRegions, draw: Draw) -> Confusion:
    """Return what the page shows of two entries with similar prototypes."""
    one, two = (
        tuple(draw(index, prototype) for index in regions.closest(entry, prototype)[:PAIR_CROPS])
        for entry, prototype in zip(pair.entries, pair.prototypes, strict=True)
    )
    return Confusion(pair.entries, pair.similarity, (one, two))


def show_image(
    name: str,
    image: Image.Image,
    areas: Sequence[Area],
    network: RcaNetwork,
    regions: NearestRegions,
    colours: Sequence[OutlineColour],
    draw: Draw,
) -> NewImage:
    """Return what the page shows of a new image and its areas."""
    photo = _reduced(image, IMAGE_SIDE)
    work = _reduced(image, WORKING_SIDE)
    shown = areas[:MOST_AREAS]
    outlined = outline_regions(
        photo, [(enlarged(network, area.cells, photo), colours[area.entry]) for area in shown], IMAGE_SIDE
    )
    attended = []
    for area in shown:
        picture = crop_region(work, enlarged(network, area.cells, work), colours[area.entry])
        examples = regions.closest(area.entry, area.prototype)[:AREA_CROPS]
        attended.append(
            Attention(
                area.entry,
                _label_place(area.cells, photo.size),
                data_uri(picture, "jpeg", quality=82),
                picture.size,
                _bars(area.shares.tolist()),
                area.similarity,
                tuple(draw(index, area.prototype) for index in examples),
            )
        )
    uri = data_uri(outlined, "jpeg", quality=82)
    return NewImage(name, uri, outlined.size, tuple(attended), len(areas) - len(shown))


def draw_region(
    index: int,
    prototype: int,
    regions: NearestRegions,
    network: RcaNetwork,
    colours: Sequence[OutlineColour],
    max_megapixels: float,
) -> CropPicture:
    """Draw a training region: a crop of its photo with the region outlined in the colour of its class.

    Raises:
        DataError: when the photo can no longer be read.
    """
    sample, entry, nearest = regions.samples[index], int(regions.label[index]), int(regions.nearest[index])
    photo = _reduced(read_image(sample.image, max_megapixels), WORKING_SIDE)
    picture = crop_region(photo, enlarged(network, regions.cells[index].numpy(), photo), colours[entry])
    return CropPicture(
        data_uri(picture, "jpeg", quality=80),
        *picture.size,
        entry,
        sample.id,
        sample.tags,
        float(regions.similarity[index, prototype]),
        nearest if nearest != entry else None,
    )


def enlarged(network: RcaNetwork, cells: Bool[np.ndarray, "h w"], photo: Image.Image) -> Bool[np.ndarray, "H W"]:
    """Return a region's cells as pixels of the photo: a smooth shape that is never empty.

    If smoothing would leave nothing, the pixels with the highest value remain.
    """
    values = network.backbone.enlarge(torch.from_numpy(cells).float()[None, None], (photo.height, photo.width))[0, 0]
    shape: Bool[np.ndarray, "H W"] = (values >= min(0.5, float(values.max()))).numpy()
    return shape


def _reduced(image: Image.Image, side: int) -> Image.Image:
    size = reduced_size(image.size, side)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _label_place(cells: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> tuple[int, int]:
    """Return where to draw an area's number in a picture of `size` (width, height): on the cell nearest its centre."""
    positions = np.argwhere(cells)
    y, x = positions[np.square(positions - positions.mean(0)).sum(1).argmin()]
    return round((x + 0.5) / cells.shape[1] * size[0]), round((y + 0.5) / cells.shape[0] * size[1])


def _bars(shares: list[float]) -> tuple[tuple[int | None, float], ...]:
    """Return the entries with the largest shares, if at least `SMALLEST_BAR`, and the rest as all others (None)."""
    order = sorted(range(len(shares)), key=lambda entry: -shares[entry])[:MOST_BARS]
    bars = [(entry, shares[entry]) for entry in order if shares[entry] >= SMALLEST_BAR]
    rest = sum(shares) - sum(share for _, share in bars)
    return (*bars, (None, rest)) if len(bars) < len(shares) else tuple(bars)
