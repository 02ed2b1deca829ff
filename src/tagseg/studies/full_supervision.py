"""The upper bound: the same network trained on full masks, so that a run can say how far tags alone have come."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from tagseg.data.prepare import prepare
from tagseg.errors import DataError, RunError
from tagseg.evaluate.evaluate import bound_settings, fits_bound, read_bound, score_segmenter, scored_samples
from tagseg.evaluate.scores import Scores, read_evaluation, write_bound_scores
from tagseg.pipeline import repeat_stage
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.run.memory import memory_named
from tagseg.run.stages import Stage
from tagseg.segment.labels import true_labels
from tagseg.settings.settings import Settings
from tagseg.system.files import remove_temporary, write_atomically
from tagseg.system.progress import Track, silent
from tagseg.trainer import Trainer, open_trainer, take_part
from tagseg.training.checkpoint import is_trained


@dataclass(frozen=True)
class UpperBound:
    """A segmentation network trained on true masks: its folder, its scores on validation images, and by them the share
    of full supervision that the run's own network reaches (None until that one is evaluated)."""

    folder: Path
    scores: Scores
    share: float | None


def train_upper_bound(
    root: str | Path,
    settings: Settings | None = None,
    force: bool = False,
    track: Track = silent,
    processes: int = 1,
) -> UpperBound:
    """Train a run's segmentation network on the true masks of its training images, all else being equal, and score it.

    It needs no earlier stage, or with segment.start = classifier the classification network. It is stored in the run's
    folder `full_supervision`; an interrupted training resumes. If the run is evaluated or has a report, these are
    updated.

    Args:
        root: a run folder of data with true masks of training and validation images.
        settings: must be the run's own, or two different networks would be compared; None takes them.
        force: train again when it is trained already.
        processes: how many processes train the network, as in `fit`.

    Raises:
        DataError: when there are no true masks.
        RunError: when the settings are not the run's, or the upper bound was trained with others and `force` is not
            given.
    """
    run = Run(Path(root))
    own = run.settings()
    if settings is not None and settings != own:
        raise RunError(f"{run.root}: the upper bound takes the run's own settings; leave out the flags that differ")
    if not take_part(own.device):
        with open_trainer(run, own.device, processes) as trainer, hold_lock(run.root):
            _train_again(run, own, force, track, trainer)
    scores = read_bound(run)
    assert scores is not None, "it was there, or has been trained"
    share = read_evaluation(run).share() if run.done("evaluate") else None
    return UpperBound(run.full_supervision.segmenter, scores, share)


def _train_again(run: Run, settings: Settings, force: bool, track: Track, trainer: Trainer) -> None:
    bound = run.full_supervision
    # An interrupted training is resumed, forced or not.
    if force and (bound.evaluation_file.exists() or not _fits(bound, settings)):
        run.forget("full_supervision")
    if read_bound(run) is None:
        with memory_named(run.root, "segment", settings):
            _train(run, bound, settings, track, trainer)
    for stage in run.manifest().again:
        repeat_stage(run, stage, track)


def _fits(bound: Run, settings: Settings) -> bool:
    """Tell whether the upper bound was trained with the current settings, or not at all."""
    return not bound.settings_file.exists() or fits_bound(bound, settings)


def _train(run: Run, bound: Run, settings: Settings, track: Track, trainer: Trainer) -> None:
    prepared = prepare(run, track)
    if not scored_samples(prepared.dataset, "val"):
        raise DataError(f"{prepared.dataset.root}: no validation image has a true mask, so nothing could be compared")
    if not _fits(bound, settings):
        raise RunError(f"{bound.root}: trained with other settings; --force trains it again")
    remove_temporary(bound.root)
    dataset = true_labels(prepared, bound.masks, track)
    write_atomically(bound.settings_file, bound_settings(settings).to_toml())
    if not is_trained(bound.segmenter):
        trainer.train_segmenter(dataset, bound.masks, settings, bound.segmenter, track)
    scores = score_segmenter(prepared, bound, settings, track)
    assert scores is not None, "there are validation images to score"
    with run.changing() as (own, draft):
        write_bound_scores(own.written(bound.evaluation_file), scores)
        draft.note("full_supervision")
        again = tuple(stage for stage in _SHOWN if stage in draft.manifest.stages)
        draft.manifest = msgspec.structs.replace(draft.manifest, again=again)


_SHOWN: tuple[Stage, ...] = ("evaluate", "report")
"""The stages that show the scores of full supervision."""
