"""Online accumulation: the maximum of every training image's maps over the epochs (OAA, ICCV 2019), in a mapped file.

The maps that training computes anyway are written back from their crop into a fixed grid over the whole image. All maps
of a run are in one array on disk, one row per image and tag, so memory does not grow with the data set.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from numpy.lib.format import open_memmap
from torch import Tensor

from tagseg.data.records import Sample
from tagseg.errors import RunError
from tagseg.rca.network import Maps, RcaNetwork
from tagseg.rca.tag_maps import pair_maps
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.settings import MapKind, Settings, map_kind
from tagseg.system.files import atomic_path, reserve
from tagseg.system.records import ClassId, Positive, Record, read_record, write_record
from tagseg.system.untrusted import DAMAGED_ARRAY, require_regular
from tagseg.training.distributed import ALONE, Group
from tagseg.training.loading import Crop

GRID = 56
"""Cells of an accumulated map per side, over the whole image whatever its shape."""

CONFIDENT = 0.5
"""A map is accumulated only when its tag's probability (sigmoid of the refined map's mean) is above this."""

FILE = "accumulated.npy"
INDEX = "accumulated.json"

_AGAIN = "train again with --force"

Array = np.memmap[Any, np.dtype[np.uint8]]


class SampleRows(msgspec.Struct, frozen=True, array_like=True):
    """A sample of accumulated.npy, which has a row for each of its tags, in their order."""

    id: str
    tags: tuple[ClassId, ...]


class MapIndex(Record, frozen=True):
    """accumulated.json: cells per side of a map, and the samples in the order of their rows in accumulated.npy."""

    grid: Positive
    samples: tuple[SampleRows, ...]


@dataclass(frozen=True)
class Accumulation:
    """Accumulated maps on disk: `array` (rows GRID GRID, 0..255 = 0..peak), one row per sample and tag in order;
    sample i's begin at row `first[i]`. `kind` is the kind of maps that are accumulated. Of several processes only the
    main one has the array, which takes the maps of all."""

    array: Array | None
    first: Int[Tensor, "samples"]
    kind: MapKind


@contextlib.contextmanager
def accumulating(
    folder: Path,
    samples: Sequence[Sample],
    settings: Settings,
    epoch: int,
    partway: bool = False,
    group: Group = ALONE,
) -> Iterator[Accumulation | None]:
    """Yield the maps accumulated before `epoch`, to be raised during it; they are kept when the block succeeds.

    Yields None when nothing is accumulated: during warm-up, and unless maps = oaa. Every epoch has its own file, which
    starts as a copy of the previous one; that stays until the next epoch. So an interrupted training resumes without
    the maps of an epoch that will be repeated, or, when the epoch was left `partway`, with those that
    `keep_accumulated` kept.

    Raises:
        RunError: when the maps of the epoch before are missing or damaged.
    """
    start = settings.warm_epochs() + 1
    if settings.maps != "oaa" or epoch < start:
        yield None
        return
    counts = [len(sample.tags) for sample in samples]
    # The kind does not hang on localise.kind: that may change after the training.
    first, kind = torch.tensor([0, *counts[:-1]]).cumsum(0), map_kind(LocaliseSettings(), settings.rca)
    if not group.is_main:
        yield Accumulation(None, first, kind)
        return
    with atomic_path(_epoch_file(folder, epoch)) as temporary:
        if epoch == start and not partway:
            array = open_memmap(temporary, "w+", np.uint8, (sum(counts), GRID, GRID))
        else:
            before = _partway_file(folder, epoch) if partway else _epoch_file(folder, epoch - 1)
            _open(before, "r", sum(counts))
            shutil.copyfile(before, temporary)
            array = open_memmap(temporary, "r+")
        reserve(temporary, temporary.stat().st_size)
        yield Accumulation(array, first, kind)
        array.flush()
    _epoch_file(folder, epoch - 2).unlink(missing_ok=True)
    # This epoch's own must stay until its end is saved.
    _partway_file(folder, epoch - 1).unlink(missing_ok=True)


def keep_accumulated(folder: Path, epoch: int, accumulation: Accumulation | None) -> None:
    """Keep the maps of an epoch that is left partway, for `accumulating` to continue from.

    If the process ends before the rest of its state is saved, the maps are ahead of it. That does no harm: the repeated
    steps raise them to the values that they already have.
    """
    if accumulation is not None and accumulation.array is not None:
        accumulation.array.flush()
        with atomic_path(_partway_file(folder, epoch)) as temporary:
            shutil.copyfile(str(accumulation.array.filename), temporary)


@torch.no_grad()
def accumulate(into: Accumulation, network: RcaNetwork, maps: Maps, crop: Crop, group: Group = ALONE) -> None:
    """Raise the accumulated maps to a batch's, each divided by its peak: `M_t = max(M_(t-1), A_t)` (OAA, ICCV 2019).

    Maps of tags that the network does not predict (see CONFIDENT) are left out. No loop over images or classes. The
    maps of all processes are gathered in every step.
    """
    tags = crop.tags.bool().cpu()
    image, column = tags.nonzero(as_tuple=True)
    rows = into.first[crop.sample[image]] + (tags.cumsum(1) - 1)[image, column]
    sure = (maps.refined_scores.float().sigmoid() > CONFIDENT).cpu()[image, column]
    values = _placed_maps(network, maps, crop, into.kind, sure)
    rows, values = group.all_gather(rows[sure], values)
    if into.array is not None and len(rows):
        into.array[rows.numpy()] = np.maximum(into.array[rows.numpy()], values.numpy())


def _placed_maps(
    network: RcaNetwork, maps: Maps, crop: Crop, kind: MapKind, sure: Bool[Tensor, "n"]
) -> UInt8[Tensor, "m g g"]:
    """The `sure` ones of the maps of n pairs of an image and its tag, in the whole image's cells, 255 at the peak."""
    if not sure.any():
        return torch.zeros(0, GRID, GRID, dtype=torch.uint8)
    device = maps.coarse.device
    image, column = crop.tags.bool().cpu().nonzero(as_tuple=True)
    chosen = pair_maps(network, maps, image.to(device), column.to(device) + 1, kind)[sure.to(device)]
    side = crop.picture.shape[-1]
    pixels = network.backbone.enlarge(chosen[:, None], (side, side))[:, 0]
    placed = place(pixels, crop.box[image[sure]].to(device), crop.mirrored[image[sure]].to(device))
    peaks = placed.amax((1, 2), keepdim=True).clamp_min(1e-6)
    return (placed / peaks * 255).round().to(torch.uint8).cpu()


def place(
    pixels: Float[Tensor, "n y x"], box: Float[Tensor, "n 4"], mirrored: Bool[Tensor, "n"]
) -> Float[Tensor, "n g g"]:
    """Return crops' maps in the GRID x GRID cells of their whole images, 0 outside the crop (bilinear).

    `box` is the crop's top, left, height and width as shares of the image's; a mirrored crop is turned back.
    """
    centres = (torch.arange(GRID, device=pixels.device) + 0.5) / GRID
    down, right = ((centres - box[:, i, None]) / box[:, i + 2, None] for i in (0, 1))  # shares of the crop
    right = torch.where(mirrored[:, None], 1 - right, right)
    down, right = down[:, :, None].expand(-1, -1, GRID), right[:, None, :].expand(-1, GRID, -1)
    where = torch.stack([right, down], -1) * 2 - 1
    sampled = F.grid_sample(pixels[:, None], where, padding_mode="border", align_corners=False)[:, 0]
    return sampled * (where.abs() <= 1).all(-1)


def finish_accumulating(folder: Path, samples: Sequence[Sample], epochs: int) -> None:
    """Keep the last epoch's maps as accumulated.npy, with accumulated.json, which assigns the rows."""
    index = MapIndex(GRID, tuple(SampleRows(sample.id, tuple(sample.tags)) for sample in samples))
    write_record(folder / INDEX, index)
    if _epoch_file(folder, epochs).exists():
        _epoch_file(folder, epochs).replace(folder / FILE)
    # A killed training leaves the copy it worked on, in addition to the previous epoch.
    others = (_epoch_file(folder, epochs - 1), _partway_file(folder, epochs))
    for leftover in (*others, *folder.glob(".writing-*.npy")):
        leftover.unlink(missing_ok=True)


def read_accumulated(folder: Path) -> tuple[Array, dict[str, slice]]:
    """Return the accumulated maps (rows g g, read when touched) and, by sample id, the rows of its tags in their order.

    Raises:
        RunError: when a file is missing or damaged.
    """
    samples = read_record(folder / INDEX, MapIndex, _AGAIN).samples
    ends = np.cumsum([len(sample.tags) for sample in samples]).tolist()
    rows = {sample.id: slice(end - len(sample.tags), end) for sample, end in zip(samples, ends, strict=True)}
    return _open(folder / FILE, "r", ends[-1] if ends else 0), rows


def _epoch_file(folder: Path, epoch: int) -> Path:
    return folder / f"accumulated-{epoch}.npy"


def _partway_file(folder: Path, epoch: int) -> Path:
    return folder / f"accumulated-{epoch}-partway.npy"


def _open(path: Path, mode: Literal["r", "r+"], rows: int) -> Array:
    try:
        require_regular(path)
        array = open_memmap(path, mode)
    except DAMAGED_ARRAY as error:
        raise RunError(f"{path}: missing or damaged ({error}); {_AGAIN}") from error
    if array.shape != (rows, GRID, GRID) or array.dtype != np.uint8:
        raise RunError(
            f"{path}: holds {array.dtype} of {array.shape}, expected uint8 of {(rows, GRID, GRID)}; {_AGAIN}"
        )
    return array
