"""Bring a run up to date with what it was taught: entries of the bank, maps and masks, from the cache of features."""

import logging
from collections.abc import Mapping

import numpy as np
import torch

from tagseg.data.prepare import Prepared
from tagseg.errors import RunError
from tagseg.features.cache import FeatureCache, open_features
from tagseg.masks.localise import from_cache
from tagseg.masks.make import make_masks
from tagseg.masks.map_files import map_file, quantised_maps, read_maps, write_maps
from tagseg.masks.mask_files import mask_file
from tagseg.rca.heads import fine_features
from tagseg.rca.network import RcaNetwork
from tagseg.rca.taught import TAUGHT, TaughtEntries, taught_entries, write_taught
from tagseg.rca.train import load_network
from tagseg.run.folder import Run
from tagseg.run.taught import Answer, answers, taught_digest
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)

NOTE = "taught"
"""The field of a stage's note in the manifest that says which answers it took into account."""


def require_frozen(run: Run) -> None:
    """Check that a run's masks follow from cached features, so that answers can change them without training.

    Raises:
        RunError: when it was not trained, or trained by gradient steps.
    """
    run.require("train")
    settings = run.settings()
    if settings.train.method != "frozen" or settings.localise.maps_from or settings.segment.labels:
        raise RunError(
            f"{run.root}: must be made from frozen features to be taught, found train.method = "
            f"{settings.train.method}; make another run with `tagseg fit DATA --out RUN --quality fast` (or balanced)"
        )
    if settings.rca.posterior != "nearest" or settings.maps != "cam" or not settings.has_posteriors():
        raise RunError(
            f"{run.root}: must make its masks from the nearest prototypes to be taught, found rca.posterior = "
            f"{settings.rca.posterior}, localise.kind = {settings.localise.kind} and maps = {settings.maps}; make "
            "another run with `tagseg fit DATA --out RUN --quality fast`"
        )


def entries_of(
    given: Mapping[int, Answer], prepared: Prepared, network: RcaNetwork, cache: FeatureCache, digest: str
) -> TaughtEntries:
    """Return the entries of the bank that a run's answers stand for, from cached features."""
    samples, classes = prepared.dataset.split("train"), prepared.dataset.classes
    known = [sample.id for sample in samples if sample.tags]
    features = lambda name: fine_features(network, cache, name)  # noqa: E731
    return taught_entries(given, classes, features, network.channels, known, digest)


def is_applied(run: Run) -> bool:
    """Tell whether the run's bank, maps and masks follow all answers."""
    notes, digest = run.manifest().stages, taught_digest(run)
    return all(notes[stage].taught == digest for stage in ("train", "localise", "masks") if stage in notes)


def apply_answers(prepared: Prepared, run: Run, track: Track = silent) -> tuple[str, ...]:
    """Write the taught entries of the bank, make the maps again and the masks of the images whose maps changed, and
    return the ids of these images. Nothing is trained, and the backbone sees no image.

    All of it changes together. The segmentation network is left to the caller.

    Raises:
        RunError: as `require_frozen`; when a file of the run is damaged, or a mask cannot be made.
    """
    require_frozen(run)
    if is_applied(run):
        return ()
    given, digest = answers(run), taught_digest(run)
    cache, device = open_features(run.features), torch.device("cpu")
    network, _ = load_network(run.network, device)
    network.taught = entries_of(given, prepared, network, cache, digest)
    changed: tuple[str, ...] = ()
    with run.changing() as (own, draft):
        taught = []
        if digest or (run.network / TAUGHT).exists():  # empty when all was taken back: the manifest knows the file
            taught = [run.name_of(run.network / TAUGHT)]
            write_taught(own.written(run.network), network.taught)
        draft.amend("train", taught, {NOTE: digest})
        if run.done("masks"):
            draft.forget("quality")  # scores of the old masks
        if run.done("localise"):
            changed = _new_maps(prepared, own, network, cache, track)
            draft.amend("localise", [run.name_of(map_file(run, name)) for name in changed], {NOTE: digest})
        if run.done("masks"):
            make_masks(prepared, own, track, again=frozenset(changed))
            files = [mask_file(folder, name) for folder in (run.masks, run.decided_masks) for name in changed]
            draft.amend("masks", map(run.name_of, files), {NOTE: digest})
    log.info("taught: %d entries of the memory bank, %d maps changed", len(network.taught), len(changed))
    return changed


def _new_maps(prepared: Prepared, run: Run, network: RcaNetwork, cache: FeatureCache, track: Track) -> tuple[str, ...]:
    """Write the maps that differ from those in the run, and return their images' ids."""
    samples, settings, changed = [one for one in prepared.dataset.split("train") if one.tags], run.settings(), []
    for sample in track(samples, "maps", len(samples)):
        maps = from_cache(network, cache, sample, settings).numpy()
        file = map_file(run, sample.id)
        if not np.array_equal(read_maps(file)[0], quantised_maps(maps)):
            write_maps(run.written(file), maps, sample.tags)
            changed.append(sample.id)
    return tuple(changed)
