"""What the atlas shows, worked out and drawn: entries with their prototypes, likely confusions, new images."""

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
"""Larger photos are reduced to this long side, in pixels, before regions are cut out of them."""

IMAGE_SIDE = 600
"""Long side of a new image on the page, in pixels."""

MOST_CROPS = 840
"""About so many regions of prototypes are shown: with more the page would exceed about 8 MB."""

CROPS = 6
"""Regions shown for a prototype at most; half as many where classes are many: prototypes are left out then."""

PAIR_CROPS, AREA_CROPS = 4, 3
"""Regions shown on each side of a likely confusion, and beside an area of a new image."""

MOST_AREAS, MOST_BARS, MOST_OTHERS = 8, 4, 3

LEAST_BAR = 0.01
"""An entry with a smaller share of the attention is counted among all others."""


@dataclass(frozen=True)
class CropPicture:
    """A training region's picture; `entry` is its label, `nearer` the other entry whose prototype is nearer, if any."""

    picture: str
    width: int
    height: int
    entry: int
    name: str
    tags: tuple[int, ...]
    similarity: float
    nearer: int | None


Draw = Callable[[int, int], CropPicture]
"""Draws a region, given its place among those seen, beside a prototype of its label."""


@dataclass(frozen=True)
class Prototype:
    """A prototype: its share of the entry's slots, how many regions belong to it, the nearest of them."""

    share: float
    regions: int
    crops: tuple[CropPicture, ...]


@dataclass(frozen=True)
class AtlasEntry:
    """An entry: slots it holds, prototypes it has and those shown; how many others have no region, or no room here.

    `own` is the share of its regions that lie nearest to its own prototypes, `others` the entries that most of the rest
    are nearest to, with their shares.
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
    """Two entries whose prototypes lie close, and the regions of each that are nearest to its one."""

    entries: tuple[int, int]
    similarity: float
    sides: tuple[tuple[CropPicture, ...], tuple[CropPicture, ...]]


@dataclass(frozen=True)
class Attention:
    """An area of a new image: where its number stands (in the picture's pixels), its own picture, the entries that get
    most of its attention (None: all others), and the regions nearest to the prototype that it attends to most."""

    entry: int
    at: tuple[int, int]
    picture: str
    size: tuple[int, int]
    bars: tuple[tuple[int | None, float], ...]
    similarity: float
    crops: tuple[CropPicture, ...]


@dataclass(frozen=True)
class NewImage:
    """A new image, its areas outlined, and how many smaller areas are not shown."""

    name: str
    picture: str
    size: tuple[int, int]
    areas: tuple[Attention, ...]
    left_out: int


def crop_budget(memory: Memory) -> tuple[int, int]:
    """Return how many prototypes an entry, and how many regions a prototype may show, for the page's size."""
    entries, most = int(memory.exists.any(1).sum()), int(memory.exists.sum(1).max())
    crops = min(CROPS, max(CROPS // 2, MOST_CROPS // (entries * most)))
    return min(most, max(1, MOST_CROPS // (entries * crops))), crops


def show_entry(memory: Memory, seen: NearestRegions, entry: int, draw: Draw) -> AtlasEntry:
    """Return what is shown of an entry; its prototypes by their share of the slots, the largest first."""
    most, each = crop_budget(memory)
    held = memory.exists[entry].nonzero().flatten().tolist()
    held.sort(key=lambda prototype: -float(memory.share[entry, prototype]))
    members = {prototype: seen.members(entry, prototype) for prototype in held}
    matched = [prototype for prototype in held if members[prototype]]
    shown = [
        Prototype(
            float(memory.share[entry, prototype]),
            len(members[prototype]),
            tuple(draw(index, prototype) for index in members[prototype][:each]),
        )
        for prototype in matched[:most]
    ]
    mine = seen.nearest[seen.label == entry]
    shares = torch.bincount(mine, minlength=len(memory.filled)) / max(len(mine), 1)
    order = [other for other in shares.argsort(descending=True).tolist() if other != entry and shares[other] > 0]
    return AtlasEntry(
        entry,
        int(memory.filled[entry]),
        len(held),
        tuple(shown),
        len(held) - len(matched),
        len(matched) - len(shown),
        len(mine),
        float(shares[entry]),
        tuple((other, float(shares[other])) for other in order[:MOST_OTHERS]),
    )


def show_pair(pair: EntryPair, seen: NearestRegions, draw: Draw) -> Confusion:
    """Return what is shown of two entries whose prototypes lie close."""
    one, two = (
        tuple(draw(index, prototype) for index in seen.closest(entry, prototype)[:PAIR_CROPS])
        for entry, prototype in zip(pair.entries, pair.prototypes, strict=True)
    )
    return Confusion(pair.entries, pair.similarity, (one, two))


def show_image(
    name: str,
    image: Image.Image,
    areas: Sequence[Area],
    network: RcaNetwork,
    seen: NearestRegions,
    colours: Sequence[OutlineColour],
    draw: Draw,
) -> NewImage:
    """Return what is shown of a new image and its areas."""
    photo = _reduced(image, IMAGE_SIDE)
    work = _reduced(image, WORKING_SIDE)
    shown = areas[:MOST_AREAS]
    outlined = outline_regions(
        photo, [(enlarged(network, area.cells, photo), colours[area.entry]) for area in shown], IMAGE_SIDE
    )
    attended = []
    for area in shown:
        picture = crop_region(work, enlarged(network, area.cells, work), colours[area.entry])
        examples = seen.closest(area.entry, area.prototype)[:AREA_CROPS]
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
    seen: NearestRegions,
    network: RcaNetwork,
    colours: Sequence[OutlineColour],
    max_megapixels: float,
) -> CropPicture:
    """Draw a training region: a crop of its photo, the region outlined in its class's colour.

    Raises:
        DataError: when the photo cannot be read any more.
    """
    sample, entry, nearest = seen.samples[index], int(seen.label[index]), int(seen.nearest[index])
    photo = _reduced(read_image(sample.image, max_megapixels), WORKING_SIDE)
    picture = crop_region(photo, enlarged(network, seen.cells[index].numpy(), photo), colours[entry])
    return CropPicture(
        data_uri(picture, "jpeg", quality=80),
        *picture.size,
        entry,
        sample.id,
        sample.tags,
        float(seen.similarity[index, prototype]),
        nearest if nearest != entry else None,
    )


def enlarged(network: RcaNetwork, cells: Bool[np.ndarray, "h w"], photo: Image.Image) -> Bool[np.ndarray, "H W"]:
    """Return a region's cells as pixels of the photo: a smooth shape, each cell where the network saw it.

    Never empty: where smoothing leaves nothing, the pixels that come closest stay.
    """
    values = network.backbone.enlarge(torch.from_numpy(cells).float()[None, None], (photo.height, photo.width))[0, 0]
    shape: Bool[np.ndarray, "H W"] = (values >= min(0.5, float(values.max()))).numpy()
    return shape


def _reduced(image: Image.Image, side: int) -> Image.Image:
    size = reduced_size(image.size, side)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _label_place(cells: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> tuple[int, int]:
    """Return where in a picture of `size` (width, height) an area is numbered: on the cell nearest to its middle."""
    places = np.argwhere(cells)
    y, x = places[np.square(places - places.mean(0)).sum(1).argmin()]
    return round((x + 0.5) / cells.shape[1] * size[0]), round((y + 0.5) / cells.shape[0] * size[1])


def _bars(shares: list[float]) -> tuple[tuple[int | None, float], ...]:
    """Return the entries with the largest shares of at least `LEAST_BAR`, and what is left for all others (None)."""
    order = sorted(range(len(shares)), key=lambda entry: -shares[entry])[:MOST_BARS]
    bars = [(entry, shares[entry]) for entry in order if shares[entry] >= LEAST_BAR]
    rest = sum(shares) - sum(share for _, share in bars)
    return (*bars, (None, rest)) if len(bars) < len(shares) else tuple(bars)
