"""Compute the features of images once: one pass of the backbone per image and scale."""

import contextlib
import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from tagseg.data.images import read_image
from tagseg.data.prepare import Prepared
from tagseg.data.records import Sample
from tagseg.errors import DataError, RunError
from tagseg.features.cache import (
    INDEX,
    PROJECTION,
    CachedImage,
    FeatureCache,
    FeatureIndex,
    FeatureSource,
    NumberFormat,
    Shard,
    data_file,
    open_features,
    read_index,
    read_shard,
    shard_file,
)
from tagseg.features.fused import LayerMaps, fuse
from tagseg.features.layers import choose_layers
from tagseg.features.plan import feature_source, plan_shards, require_space
from tagseg.features.projection import Moments, Projection, project, projection_of, projection_tensors, unit
from tagseg.networks.backbones import Backbone, build_backbone, warn_if_random
from tagseg.run.folder import Run
from tagseg.settings.features import FeatureSettings
from tagseg.system.files import as_bytes, atomic_path, remove_temporary, write_atomically
from tagseg.system.process import cores
from tagseg.system.progress import Track, images_per_s, map_ahead, map_side_by_side, silent
from tagseg.system.records import write_record
from tagseg.training.device import choose_device
from tagseg.training.loading import to_bytes

log = logging.getLogger(__name__)

FIT_IMAGES, FIT_CELLS = 250, 64
"""Most images on which principal components are computed, and cells of each of their maps."""

HELD_OUT = 5
"""One in this many of these images tells how much variance the components of the others lose."""

FIT_SEED = 0
"""Seed of the choice of these images and cells. It is not the run's, so that runs with other seeds have the same
features."""

BATCH = 8
"""Most images that are decoded for one batch."""

_BATCH_PIXELS = {"cpu": 1 << 19, "cuda": 1 << 23}
"""Most pixels in one pass of the backbone: on a CPU, larger passes fall out of its caches."""

_FASTER, _AGREEMENT = 1.2, 0.995
"""bf16 is used where it is this many times as fast as fp32 and the mean cosine of each layer's cells is this high."""


@dataclass(frozen=True)
class _Work:
    """What all passes share: backbone, source of the features, precision, and how images are read."""

    backbone: Backbone
    source: FeatureSource
    samples: Mapping[str, Sample]
    max_megapixels: float
    precision: NumberFormat = "fp32"

    def at(self, precision: NumberFormat) -> "_Work":
        """Return the same with another precision; with its own the object itself, which may hold a traced backbone."""
        return self if precision == self.precision else replace(self, precision=precision)

    @cached_property
    def fused(self) -> LayerMaps | None:
        """A pass that threads may make side by side, if there is one."""
        return fuse(self.backbone, self.names) if self.precision == "fp32" else None

    @property
    def names(self) -> list[str]:
        """The names of the layers."""
        return [layer.name for layer in self.source.layers]

    def maps(self, images: Float[Tensor, "b 3 H W"]) -> Sequence[Float[Tensor, "b _ _ _"]]:
        """Return the maps of all layers."""
        if self.fused is not None:
            return self.fused(images)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.backbone.layer_maps(images, self.names)


class _Read:
    """An image with its pictures at some scales."""

    def __init__(self, image: CachedImage, pictures: list[UInt8[Tensor, "3 _ _"]]) -> None:
        self.image, self.pictures = image, pictures


def make_features(prepared: Prepared, run: Run, track: Track = silent) -> FeatureCache:
    """Compute the features of a run's training images into `run.features`, and note their checksums in the manifest.

    The backbone has its start weights. What exists already is kept.

    Raises:
        ValueError: as `build_backbone` and `choose_layers`.
        DataError: naming the image, when one cannot be read or has changed since the run began.
        RunError: when the disk has too little space.
    """
    settings = run.settings()
    train = settings.train
    warn_if_random(train.backbone, train.weights)
    torch.manual_seed(settings.seed)  # random weights are those that the network gets, too
    backbone = build_backbone(train.backbone, train.weights, train.stride).to(choose_device(settings.device))
    samples, most = prepared.dataset.split("train"), settings.data.max_megapixels
    if "features" in (manifest := run.manifest()).others:  # what a kill leaves meanwhile is unfinished, not damaged
        run.store(manifest.without_others(["features"]))
    cache = extract(samples, prepared.sizes, backbone, settings.features, run.features, most, track)
    known = {shard_data: shard.sha256 for shard_data, shard in _data_files(cache)}
    run.note("features", known)
    return cache


def extract(
    samples: Sequence[Sample],
    sizes: Mapping[str, tuple[int, int]],
    backbone: Backbone,
    settings: FeatureSettings,
    folder: Path,
    max_megapixels: float,
    track: Track = silent,
) -> FeatureCache:
    """Compute the features of images into a folder, and open them.

    Shards that are complete and were made from the same images by the same backbone and settings are kept, all other
    files of the folder are deleted.

    Args:
        samples: the images.
        sizes: their (height, width) in pixels, by id.
        backbone: on the device that computes.
        settings: layers, scales, size and channels of the features.
        folder: where the features are stored; only for them.
        max_megapixels: larger images are refused.
        track: reports progress.

    Raises:
        ValueError: as `choose_layers`.
        DataError: naming the image, when one cannot be read or is not of its size.
        RunError: when the disk has too little space.
        WriteError: when the disk gets full, or the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary(folder)
    backbone = backbone.to(memory_format=torch.channels_last).eval()
    source = feature_source(backbone, choose_layers(backbone, settings.layers), settings, weights_digest(backbone))
    index = _usable_index(folder, source, settings)
    shards = list(plan_shards(samples, sizes, backbone, source))
    missing = [
        number for number, images in enumerate(shards) if not (index and _is_kept(folder, number, images, source))
    ]
    stale = list(_stale_files(folder, index is not None, {*range(len(shards))} - {*missing}))
    require_space(folder, shards, missing, source, sum(file.stat().st_size for file in stale))
    for file in stale:
        file.unlink()
    work = _Work(backbone, source, {sample.id: sample for sample in samples}, max_megapixels)
    if index is None:
        index = _begin(work, [image for shard in shards for image in shard], settings, folder, track)
    images = sum(map(len, shards))
    index = FeatureIndex(source, index.precision, index.lost, index.projection, images, len(shards))
    write_record(folder / INDEX, index)
    if missing:
        _fill(work, index, {number: shards[number] for number in missing}, folder, track)
    return open_features(folder)


def weights_digest(backbone: Backbone) -> str:
    """Return the SHA-256 of a backbone's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _usable_index(folder: Path, source: FeatureSource, settings: FeatureSettings) -> FeatureIndex | None:
    if not (folder / INDEX).exists():
        return None
    try:
        index = read_index(folder)
    except RunError as error:
        log.warning("features are computed again: %s", error)
        return None
    if index.source != source or settings.precision not in ("auto", index.precision):
        log.info("features are computed again: the backbone, its weights or a setting of features has changed")
        return None
    return index


def _is_kept(folder: Path, number: int, images: tuple[CachedImage, ...], source: FeatureSource) -> bool:
    if not shard_file(folder, number).exists():
        return False
    try:
        return read_shard(folder, number, source).images == images
    except RunError as error:
        log.warning("features are computed again: %s", error)
        return False


def _stale_files(folder: Path, keep_index: bool, kept: set[int]) -> Iterator[Path]:
    """Yield the files of a cache that are not kept; a shard's JSON file before its data."""
    valid = {path for number in kept for path in (shard_file(folder, number), data_file(folder, number))}
    if keep_index:
        valid |= {folder / INDEX, folder / PROJECTION}
    files = [*sorted(folder.glob("*.json")), *sorted(folder.glob("*.f16")), *folder.glob(PROJECTION)]
    yield from (file for file in files if file not in valid)


def _begin(
    work: _Work, images: list[CachedImage], settings: FeatureSettings, folder: Path, track: Track
) -> FeatureIndex:
    """Choose the precision and compute the principal components; return an index without its number of images."""
    generator = torch.Generator().manual_seed(FIT_SEED)
    chosen = torch.randperm(len(images), generator=generator)[:FIT_IMAGES].sort().values.tolist()
    least = min(range(len(work.source.scales)), key=work.source.scales.__getitem__)
    batches = list(_batches([images[number] for number in chosen]))
    precision: NumberFormat = "fp32"
    if settings.precision != "auto":
        precision = settings.precision
    elif batches:
        precision = _choose_precision(work, batches[0][:4], least)
    work = work.at(precision)
    fitted, held_out = _moments(work), _moments(work)
    number = 0
    for read in _read_batches(work, batches, track, "features: components", (least,)):
        for maps in _passes(work, [one.pictures[0] for one in read]):
            left_out = torch.arange(number, number + len(maps[0])) % HELD_OUT == HELD_OUT - 1
            number += len(maps[0])
            for row, map_ in enumerate(maps):
                cells = map_.flatten(2).permute(0, 2, 1)
                drawn = torch.randint(cells.shape[1], (FIT_CELLS,), generator=generator)
                cells = cells[:, drawn.to(cells.device)].float().cpu()
                fitted[row].add(cells[~left_out].flatten(0, 1))
                held_out[row].add(cells[left_out].flatten(0, 1))
    projections = []
    for layer, some, others in zip(work.source.layers, fitted, held_out, strict=True):
        kept = layer.kept(settings.channels)
        lost = others.lost(some.projection(kept))
        projections.append(some.plus(others).projection(kept, lost))
    for layer, one in zip(work.source.layers, projections, strict=True):
        kept, lost = layer.kept(settings.channels), 100 * one.lost
        log.info("features of layer %s: %d of %d channels, %.1f %% of the variance lost", layer.name, kept,
                 layer.channels, lost)  # fmt: skip
    content = save(projection_tensors([layer.name for layer in work.source.layers], projections))
    write_atomically(folder / PROJECTION, content)
    shares = tuple(one.lost for one in projections)
    return FeatureIndex(work.source, precision, shares, hashlib.sha256(content).hexdigest(), 0, 0)


def _moments(work: _Work) -> list[Moments]:
    channels = work.source.channels
    return [Moments(layer.channels, layer.kept(channels) == layer.channels) for layer in work.source.layers]


def _choose_precision(work: _Work, images: Sequence[CachedImage], scale: int) -> NumberFormat:
    """Return bf16 if it is faster on this machine and its features agree with those of fp32, else fp32."""
    pictures = [_read(work, (scale,), image).pictures[0] for image in images]
    seconds, outputs = {}, {}
    both: tuple[NumberFormat, ...] = ("fp32", "bf16")
    for precision in both:
        once = partial(_once, work.at(precision), pictures)
        try:
            outputs[precision] = once()  # the first pass is slower
        except (RuntimeError, NotImplementedError):  # operations that this device lacks
            return "fp32"
        seconds[precision] = min(_timed(once) for _ in range(2))
    pairs = zip(outputs["fp32"], outputs["bf16"], strict=True)
    agreement = min(
        float((unit(full.float().permute(0, 2, 3, 1)) * unit(half.float().permute(0, 2, 3, 1))).sum(-1).mean())
        for full, half in pairs
    )
    faster = seconds["fp32"] / max(seconds["bf16"], 1e-9)
    log.info("features: bf16 is %.2f times as fast as fp32, mean cosine at least %.4f", faster, agreement)
    return "bf16" if faster >= _FASTER and agreement >= _AGREEMENT else "fp32"


def _once(work: _Work, pictures: Sequence[Tensor]) -> Sequence[Tensor]:
    return next(_passes(work, pictures))


def _timed(call: Callable[[], Sequence[Tensor]]) -> float:
    started = time.perf_counter()
    for map_ in call():
        float(map_.flatten()[0])  # waits for a GPU
    return time.perf_counter() - started


def _fill(
    work: _Work, index: FeatureIndex, shards: Mapping[int, tuple[CachedImage, ...]], folder: Path, track: Track
) -> None:
    """Compute and write shards."""
    work = work.at(index.precision)
    tensors, device = load_file(folder / PROJECTION), work.backbone.mean.device
    projections = [_on(projection_of(tensors, layer.name), device) for layer in work.source.layers]
    batches = {number: list(_batches(images)) for number, images in shards.items()}
    total = sum(map(len, shards.values()))
    started = time.monotonic()
    every_scale = tuple(range(len(work.source.scales)))
    every_batch = [batch for found in batches.values() for batch in found]
    compute = partial(_computed, work, projections)
    with contextlib.closing(_read_batches(work, every_batch, track, "features", every_scale)) as reads:
        # Passes side by side are faster than one pass on several cores; those of the backbone itself share its hooks.
        alone = work.fused is None
        made = map_ahead(reads, compute, 1) if alone else map_side_by_side(reads, compute, cores())
        with contextlib.closing(made) as computed:
            for number, images in shards.items():
                done = itertools.islice(computed, len(batches[number]))
                _write_shard(work, images, itertools.chain.from_iterable(done), folder, number)
    size = sum(work.source.image_bytes(image.views) for images in shards.values() for image in images)
    pace = images_per_s(total, time.monotonic() - started)
    log.info("features: %d images, %s, %s, %.1f images/s", total, as_bytes(size), index.precision, pace)


def _computed(work: _Work, projections: Sequence[Projection], read: list[_Read]) -> list[tuple[str, bytes]]:
    """Return what a shard holds of each image of a batch, with the image's id."""
    return [(one.image.id, content) for one, content in zip(read, _contents(work, projections, read), strict=True)]


def _write_shard(
    work: _Work, images: tuple[CachedImage, ...], contents: Iterable[tuple[str, bytes]], folder: Path, number: int
) -> None:
    lengths = [work.source.image_bytes(image.views) for image in images]
    starts = dict(zip((image.id for image in images), itertools.accumulate(lengths, initial=0), strict=False))
    data = data_file(folder, number)
    with atomic_path(data) as temporary:
        with temporary.open("r+b") as file:
            for image_id, content in contents:
                file.seek(starts[image_id])
                file.write(content)
            file.truncate(sum(lengths))
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    status = data.stat()
    write_record(shard_file(folder, number), Shard(images, status.st_size, status.st_mtime_ns, digest))


def _contents(work: _Work, projections: Sequence[Projection], read: list[_Read]) -> Iterator[bytes]:
    """Yield what a shard holds of each image of a batch."""
    pooled: list[list[np.ndarray]] = []
    maps: list[list[np.ndarray]] = []
    for scale in range(len(work.source.scales)):
        means, stored = [], []
        for outputs in _passes(work, [one.pictures[scale] for one in read]):
            means.append([map_.float().mean((2, 3)).cpu() for map_ in outputs])
            kept = [project(map_, one).half().cpu() for map_, one in zip(outputs, projections, strict=True)]
            stored.append([map_.contiguous() for map_ in kept])
        pooled.append([torch.cat(parts).numpy() for parts in zip(*means, strict=True)])
        maps.append([torch.cat(parts).numpy() for parts in zip(*stored, strict=True)])
    for i in range(len(read)):
        # Layer by layer, and within a layer scale by scale.
        parts = [by_scale[layer][i] for layer in range(len(projections)) for by_scale in pooled]
        parts += [by_scale[layer][i] for layer in range(len(projections)) for by_scale in maps]
        yield b"".join(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes() for part in parts)


def _passes(work: _Work, pictures: Sequence[UInt8[Tensor, "3 h w"]]) -> Iterator[Sequence[Float[Tensor, "b _ _ _"]]]:
    """Yield the maps of all layers for pictures of one size, for as many at a time as memory allows."""
    device = work.backbone.mean.device
    most = max(_BATCH_PIXELS.get(device.type, _BATCH_PIXELS["cpu"]) // pictures[0][0].numel(), 1)
    for start in range(0, len(pictures), most):
        images = torch.stack(list(pictures[start : start + most])).to(device)
        images = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
        with torch.no_grad():
            found = work.maps(images)
        for layer, map_ in zip(work.source.layers, found, strict=True):
            assert map_.shape[2:] == layer.cells((images.shape[2], images.shape[3])), (layer, map_.shape, images.shape)
        yield found


def _batches(images: Sequence[CachedImage]) -> Iterator[list[CachedImage]]:
    """Yield images in batches of equal views."""
    for _, group in itertools.groupby(sorted(images, key=lambda image: image.views), key=lambda image: image.views):
        alike = list(group)
        yield from (alike[start : start + BATCH] for start in range(0, len(alike), BATCH))


def _read_batches(
    work: _Work, batches: Sequence[list[CachedImage]], track: Track, title: str, scales: tuple[int, ...]
) -> Generator[list[_Read]]:
    """Yield batches with their pictures at some scales, read by threads that work ahead."""
    images = [image for batch in batches for image in batch]
    with contextlib.closing(map_ahead(images, partial(_read, work, scales), cores())) as reads:
        tracked = iter(track(reads, title, len(images)))
        for batch in batches:
            yield list(itertools.islice(tracked, len(batch)))
        for _ in tracked:  # lets the report of progress end
            pass


def _read(work: _Work, scales: tuple[int, ...], image: CachedImage) -> _Read:
    path = work.samples[image.id].image
    enough = round(work.source.max_side * max(work.source.scales))
    picture = read_image(path, work.max_megapixels, enough)
    (h, w), found = image.size, (picture.height, picture.width)
    # A JPEG may have been decoded at a part of its size.
    if all(found != (-(-h // part), -(-w // part)) for part in (1, 2, 4, 8)):
        raise DataError(
            f"{path}: has {picture.width} x {picture.height} pixels, expected {w} x {h}: it has "
            "changed since the run began; use another --out"
        )
    pictures = []
    for number in scales:
        height, width = image.views[number]
        pictures.append(to_bytes(picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)))
    return _Read(image, pictures)


def _on(projection: Projection, device: torch.device) -> Projection:
    components = None if projection.components is None else projection.components.to(device)
    return replace(projection, mean=projection.mean.to(device), components=components)


def _data_files(cache: FeatureCache) -> Iterator[tuple[Path, Shard]]:
    return ((data_file(cache.folder, number), shard) for number, shard in enumerate(cache.shards))
