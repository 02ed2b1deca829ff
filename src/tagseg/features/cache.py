"""The cache of backbone features: files of many images each, mapped into memory, and what they were made from.

`index.json` says what the features were made from and how many images there are; `projection.safetensors` holds the
principal components. Each shard is a file of consecutive images, NNNNNN.f16, and NNNNNN.json with its checksum, which
is written last: a shard without it does not exist. For each image a shard holds the means of the full layers (float32),
then the maps (float16), layer by layer and within a layer scale by scale.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float16, Float32
from safetensors import SafetensorError
from safetensors.torch import load_file

from tagseg.errors import RunError
from tagseg.features.layers import Layer
from tagseg.features.projection import Projection, projection_of
from tagseg.system.files import checksum
from tagseg.system.records import Count, Positive, Record, Share, read_record

NumberFormat = Literal["fp32", "bf16"]

INDEX, PROJECTION = "index.json", "projection.safetensors"

_ALIGNED = 64
"""Each image begins at a multiple of this many bytes."""

_AGAIN = "run the same command as before again: missing and damaged features are computed again"

_Time = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Scale = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class FeatureSource(msgspec.Struct, frozen=True):
    """What features were made from, besides the images; other sources make other features.

    weights: SHA-256 of the backbone's weights. channels: the setting, 0 for all.
    """

    format: Literal[1]
    backbone: str
    weights: str
    layers: Annotated[tuple[Layer, ...], msgspec.Meta(min_length=1, max_length=1000)]
    scales: Annotated[tuple[_Scale, ...], msgspec.Meta(min_length=1, max_length=1000)]
    max_side: Positive
    channels: Count

    def image_bytes(self, views: Sequence[tuple[int, int]]) -> int:
        """Return the bytes that an image takes, whose (height, width) in pixels at each scale are `views`."""
        maps = sum(
            layer.planes(self.channels) * h * w
            for layer in self.layers
            for h, w in (layer.cells(view) for view in views)
        )
        return -(-(self.pooled_bytes() + 2 * maps) // _ALIGNED) * _ALIGNED

    def pooled_bytes(self) -> int:
        """Return the bytes that the means of an image's full layers take."""
        return 4 * len(self.scales) * sum(layer.channels for layer in self.layers)


class FeatureIndex(Record, frozen=True):
    """index.json of a cache of features.

    precision: number format in which the backbone computed. lost: per layer, the share of the variance that its
    principal components do not have, on images from which they were not computed. projection: SHA-256 of
    projection.safetensors. images, shards: how many the complete cache has.
    """

    source: FeatureSource
    precision: NumberFormat
    lost: tuple[Share, ...]
    projection: str
    images: Count
    shards: Count

    def __post_init__(self) -> None:
        if len(self.lost) != len(self.source.layers):
            raise ValueError(f"lost has {len(self.lost)} shares, expected one per layer, {len(self.source.layers)}")


class CachedImage(msgspec.Struct, frozen=True):
    """An image of a shard.

    stamp: size in bytes of its file, and when the file was last changed, in ns. size: its (height, width) in pixels.
    views: the (height, width) in pixels at which the backbone saw it, per scale.
    """

    id: str
    stamp: tuple[Count, _Time]
    size: tuple[Positive, Positive]
    views: tuple[tuple[Positive, Positive], ...]


class Shard(Record, frozen=True):
    """NNNNNN.json of a shard: its images in order; size in bytes, time of the last change (ns) and SHA-256 of its data
    file."""

    images: tuple[CachedImage, ...]
    size: Count
    changed: _Time
    sha256: str


class Place(NamedTuple):
    """Where an image's features begin: the data file and the position in bytes."""

    file: Path
    start: int
    image: CachedImage


@dataclass(frozen=True)
class FeatureCache:
    """The features of images, read from the files of a cache when they are asked for.

    Arrays are mapped into memory, not copied: the system reads what is used and frees what is not.
    """

    folder: Path
    index: FeatureIndex
    shards: tuple[Shard, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The cached layers."""
        return self.index.source.layers

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales of the images at which features were computed."""
        return self.index.source.scales

    @property
    def finest(self) -> int:
        """Which scale has the most cells."""
        return max(range(len(self.scales)), key=self.scales.__getitem__)

    @property
    def ids(self) -> tuple[str, ...]:
        """The images' ids, in the order in which they are stored."""
        return tuple(self._places)

    def size(self, sample_id: str) -> tuple[int, int]:
        """Return the (height, width) in pixels of an image, before any reduction."""
        return self._place(sample_id).image.size

    def views(self, sample_id: str) -> tuple[tuple[int, int], ...]:
        """Return the (height, width) in pixels at which the backbone saw an image, per scale."""
        return self._place(sample_id).image.views

    def maps(self, sample_id: str) -> list[Float16[np.ndarray, "_ _ _"]]:
        """Return an image's maps (channels, height, width): for each layer, one per scale (see `project`)."""
        place, source = self._place(sample_id), self.index.source
        flat = self._map(place, "<f2", source.pooled_bytes(), source.image_bytes(place.image.views))
        found, start = [], 0
        for layer in source.layers:
            for view in place.image.views:
                shape = layer.planes(source.channels), *layer.cells(view)
                found.append(flat[start : start + int(np.prod(shape))].reshape(shape))
                start += int(np.prod(shape))
        return found

    def pooled(self, sample_id: str) -> list[Float32[np.ndarray, "_"]]:
        """Return the means over cells of an image's full layers: for each layer, one per scale."""
        source = self.index.source
        flat = self._map(self._place(sample_id), "<f4", 0, source.pooled_bytes())
        ends = np.cumsum([layer.channels for layer in source.layers for _ in source.scales])
        return np.split(flat, ends[:-1])

    @cached_property
    def projections(self) -> dict[str, Projection]:
        """How each layer's cells were turned into what is stored, by the layer's name."""
        tensors = load_file(self.folder / PROJECTION)
        return {layer.name: projection_of(tensors, layer.name) for layer in self.layers}

    @cached_property
    def _places(self) -> Mapping[str, Place]:
        places = {}
        for number, shard in enumerate(self.shards):
            file, start = data_file(self.folder, number), 0
            for image in shard.images:
                places[image.id] = Place(file, start, image)
                start += self.index.source.image_bytes(image.views)
        return places

    def _place(self, sample_id: str) -> Place:
        if sample_id not in self._places:
            raise KeyError(f"{self.folder}: no features of image {sample_id}")
        return self._places[sample_id]

    def _map(self, place: Place, kind: str, start: int, end: int) -> np.ndarray:
        # One mapping per image: it goes away with the arrays, and no file stays open.
        count = (end - start) // np.dtype(kind).itemsize
        mapped = np.memmap(place.file, kind, "r", place.start + start, (count,))
        return mapped.view(np.ndarray)


def data_file(folder: Path, number: int) -> Path:
    """Return the path of a shard's data."""
    return folder / f"{number:06d}.f16"


def shard_file(folder: Path, number: int) -> Path:
    """Return the path of a shard's JSON file."""
    return folder / f"{number:06d}.json"


def open_features(folder: Path) -> FeatureCache:
    """Open a complete cache. Sizes and times of its files are checked, contents only if a time has changed.

    Raises:
        RunError: when a file is missing or damaged.
    """
    index = read_index(folder)
    shards = tuple(read_shard(folder, number, index.source) for number in range(index.shards))
    found = sum(len(shard.images) for shard in shards)
    if found != index.images:
        raise RunError(f"{folder}: has features of {found} images, expected {index.images}; {_AGAIN}")
    return FeatureCache(folder, index, shards)


def read_index(folder: Path) -> FeatureIndex:
    """Return the index of a cache.

    Raises:
        RunError: when it is missing or damaged, or the principal components are.
    """
    index, components = read_record(folder / INDEX, FeatureIndex, _AGAIN), folder / PROJECTION
    if not os.path.isfile(components) or checksum(components) != index.projection:
        raise RunError(f"{components}: missing or changed since it was written; {_AGAIN}")
    try:
        tensors = load_file(components)
        for layer in index.source.layers:
            one, kept = projection_of(tensors, layer.name), layer.kept(index.source.channels)
            shape = None if kept == layer.channels else (layer.channels, kept)
            if one.mean.shape != (layer.channels,) or (
                shape != (None if one.components is None else tuple(one.components.shape))
            ):
                raise ValueError(f"components of another shape than {INDEX} says")
    except (SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"{components}: damaged ({error}); {_AGAIN}") from error
    return index


def read_shard(folder: Path, number: int, source: FeatureSource) -> Shard:
    """Return a shard whose data file is complete.

    Raises:
        RunError: when one of its files is missing or damaged.
    """
    shard, data = read_record(shard_file(folder, number), Shard, _AGAIN), data_file(folder, number)
    if any(len(image.views) != len(source.scales) for image in shard.images):
        raise RunError(f"{shard_file(folder, number)}: damaged (images of other scales than {INDEX} says); {_AGAIN}")
    expected = sum(source.image_bytes(image.views) for image in shard.images)
    size, changed = (data.stat().st_size, data.stat().st_mtime_ns) if os.path.isfile(data) else (-1, 0)
    if size < 0 or size != expected or size != shard.size:
        found = f"has {size} bytes, expected {expected}" if size >= 0 else "missing"
        raise RunError(f"{data}: {found}; {_AGAIN}")
    # The time differs in a copied run folder, too.
    if changed != shard.changed and checksum(data) != shard.sha256:
        raise RunError(f"{data}: differs from its checksum in {shard_file(folder, number).name}; {_AGAIN}")
    return shard
