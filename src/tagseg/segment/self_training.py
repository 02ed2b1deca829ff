"""Self-training: a segmentation network improves the maps of the training images, and the next one learns from them."""

import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from PIL import Image

from tagseg.data.images import read_image
from tagseg.data.prepare import Prepared
from tagseg.data.records import Dataset, Sample
from tagseg.masks.localise import MAP_STRIDE
from tagseg.masks.make import make_masks
from tagseg.masks.map_files import map_file, tagged_maps, write_maps
from tagseg.masks.probabilities import background_cut, label_probabilities
from tagseg.masks.resize import enlarge
from tagseg.run.folder import Run
from tagseg.run.manifest import Manifest
from tagseg.segment.engines import ENGINES_FOLDER, Asked, Pictures, open_engine, spread
from tagseg.segment.predictor import Predictor
from tagseg.segment.read_network import read_predictor
from tagseg.segment.train import train_segmenter
from tagseg.settings.masks import MaskSettings
from tagseg.settings.segment import SegmentSettings
from tagseg.settings.settings import Settings
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track, map_side_by_side, silent
from tagseg.training.checkpoint import is_trained

log = logging.getLogger(__name__)

TrainSegmenter = Callable[[Dataset, Path, Settings, Path, Track], object]
"""Trains a segmentation network: `train_segmenter`, in this process or in several."""


def self_train(
    prepared: Prepared, run: Run, track: Track = silent, train_segmenter: TrainSegmenter = train_segmenter
) -> None:
    """Train the segmentation network on the run's masks, `segment.rounds` times.

    After every round but the last, the network predicts the training images. Its predictions and the maps so far (see
    `join_evidence`) give new maps, and from these the masks stage makes the masks of the next round. Network, maps and
    masks of a round are in a run folder of its own, `run.round(number)`; finished rounds are kept, so an interrupted
    training resumes.

    Raises:
        ValueError: when weights, encoder or device are not available.
    """
    settings, source = run.settings(), run
    for number in range(1, settings.segment.rounds):
        current = run.round(number)
        if not is_trained(current.segmenter):
            train_segmenter(prepared.dataset, source.masks, _teaching(settings), current.segmenter, track)
        _improve(prepared, run, source, number, track)
        source = current
    train_segmenter(prepared.dataset, source.masks, settings, run.segmenter, track)


def _teaching(settings: Settings) -> Settings:
    """Return the settings of a round before the last: its network is used only to improve the masks."""
    segment = settings.segment
    return dataclasses.replace(
        settings, segment=dataclasses.replace(segment, steps=segment.teacher_steps or segment.steps)
    )


def _improve(prepared: Prepared, run: Run, source: Run, number: int, track: Track) -> None:
    """Make the maps and masks that the round after `number` learns from."""
    settings, current = run.settings(), run.round(number)
    # Joined maps are probabilities, whatever the maps before them were.
    joined = dataclasses.replace(settings, masks=dataclasses.replace(settings.masks, background="rest"))
    write_atomically(current.settings_file, joined.to_toml())
    current.store(Manifest(data=str(run.data_root()), stages={}, round=number))
    samples = prepared.dataset.split("train")
    if not all(map_file(current, sample.id).exists() for sample in samples):
        find_maps(prepared, source, current, _teacher(current.segmenter, settings, samples), track)
    # The network is not used again; what was measured of its engine is not the same twice.
    shutil.rmtree(current.segmenter / ENGINES_FOLDER, ignore_errors=True)
    make_masks(prepared, current, track)


def _teacher(folder: Path, settings: Settings, samples: Sequence[Sample]) -> Predictor:
    """Return the network of a round, which predicts the training images."""

    def configure(predictor: Predictor) -> Predictor:
        if settings.segment.teacher_views == "one":
            return dataclasses.replace(predictor, scales=(1.0,), flip=False)
        return predictor

    @functools.cache  # an export and the check of the engine need it, too
    def read() -> Predictor:
        return read_predictor(folder, settings.device)

    def pictures(count: int) -> Pictures:
        images = (read_image(sample.image, settings.data.max_megapixels) for sample in spread(samples, count))
        return [read().picture(image) for image in images]

    # Engines are worth their preparation from so many images on that are looked at as by default.
    images = len(samples) * _views(settings.segment) // _views(SegmentSettings())
    asked = Asked(settings.segment.teacher_engine, device=settings.device, steady=True)
    opened = open_engine(folder, asked, read, configure, pictures, images)
    log.info("self-training: training images are predicted by %s (%s)", opened.engine, opened.why)
    return opened.predictor


def _views(segment: SegmentSettings) -> int:
    """Return how often the network of a round looks at an image."""
    return 1 if segment.teacher_views == "one" else len(segment.predict_scales) * (1 + segment.predict_flip)


def find_maps(prepared: Prepared, source: Run, target: Run, predictor: Predictor, track: Track = silent) -> None:
    """Write maps of every training image's tags to `target`, from the network's probabilities and the maps in `source`.

    Maps that exist already are kept.

    Raises:
        DataError: naming the image that cannot be read.
    """
    settings, samples = source.settings(), prepared.dataset.split("train")
    rule = settings.mask_rule()
    alone = dataclasses.replace(predictor, threads=1)

    def find(sample: Sample) -> None:
        if map_file(target, sample.id).exists():
            return
        image = read_image(sample.image, settings.data.max_megapixels)
        maps = tagged_maps(map_file(source, sample.id), sample.tags)
        write_maps(map_file(target, sample.id), improved_maps(alone, image, sample.tags, maps, rule), sample.tags)

    found = map_side_by_side(samples, find, predictor.threads) if predictor.is_graph else map(find, samples)
    for _ in track(found, "predict training images", len(samples)):
        pass


def improved_maps(
    predictor: Predictor,
    image: Image.Image,
    tags: tuple[int, ...],
    maps: UInt8[np.ndarray, "k y x"],
    rule: MaskSettings,
) -> Float32[np.ndarray, "k h w"]:
    """Return maps of an image's tags, from the network and from the maps so far, which `rule` turns into probabilities.

    They are probabilities, at a quarter of the resolution of the prediction.
    """
    if not tags:
        return np.zeros((0, 1, 1), np.float32)
    joined = torch.from_numpy(join_evidence(predict_tags(predictor, image, tags), maps, rule))
    size = -(-joined.shape[1] // MAP_STRIDE), -(-joined.shape[2] // MAP_STRIDE)
    pooled: Float32[np.ndarray, "k h w"] = F.adaptive_avg_pool2d(joined, size).numpy()
    return pooled


def predict_tags(predictor: Predictor, image: Image.Image, tags: tuple[int, ...]) -> Float32[np.ndarray, "l h w"]:
    """Return the network's probabilities of background and an image's tags, given that the image shows nothing else.

    They have the resolution of the prediction, see `Predictor.probabilities`.
    """
    seen = predictor.probabilities(image)[[0, *tags]]
    shares: Float32[np.ndarray, "l h w"] = seen / np.maximum(seen.sum(0), 1e-6)
    return shares


def join_evidence(
    seen: Float32[np.ndarray, "l h w"], maps: UInt8[np.ndarray, "k y x"], rule: MaskSettings
) -> Float32[np.ndarray, "k h w"]:
    """Return the tags' probabilities from those of the network and from maps (0..255, `k y x`) interpreted by `rule`.

    The result is the geometric mean of both, normalised over background and tags. It is the distribution closest to
    both: it minimises the sum of the Kullback-Leibler divergences from itself to each.
    """
    known = label_probabilities(
        enlarge(maps, seen.shape[1:]), rule, tuple(background_cut(values, rule) for values in maps)
    )
    both = np.sqrt(seen * known)
    shares: Float32[np.ndarray, "k h w"] = (both / np.maximum(both.sum(0), 1e-6))[1:]
    return shares
