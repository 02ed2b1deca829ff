"""The upper bound: the same network trained on full masks, so that a run can say how far tags alone have come."""

from dataclasses import dataclass
from pathlib import Path

from tagseg.errors import DataError, RunError
from tagseg.evaluate.evaluate import bound_settings, read_bound, score_segmenter, scored_samples
from tagseg.evaluate.scores import Scores, read_evaluation, write_bound_scores
from tagseg.pipeline import memory_named, prepare_together, repeat_stage, writing
from tagseg.run.folder import Run
from tagseg.segment.labels import true_labels
from tagseg.segment.train import train_segmenter
from tagseg.settings.settings import Settings
from tagseg.system.files import remove_temporary, write_atomically
from tagseg.system.progress import Track, silent
from tagseg.training.checkpoint import is_trained
from tagseg.training.distributed import Ranks, open_ranks


@dataclass(frozen=True)
class UpperBound:
    """A segmentation network trained on true masks: its folder, its scores on validation images, and by them the share
    of full supervision that the run's own network reaches (None until that one is evaluated)."""

    folder: Path
    scores: Scores
    share: float | None


def train_upper_bound(
    root: str | Path, settings: Settings | None = None, force: bool = False, track: Track = silent
) -> UpperBound:
    """Train a run's segmentation network on the true masks of its training images, equal in all else, and score it.

    It needs no earlier stage, lies in the run's folder `full_supervision`, and an interrupted training continues. Where
    the run is evaluated or has a report, these are brought up to date.

    Args:
        root: a run folder of data with true masks of training and validation images.
        settings: must be the run's own, or the comparison would be of two networks; None takes them.
        force: train again when it is there already.

    Raises:
        DataError: when there are no true masks.
        RunError: when the settings are not the run's, or what is there was trained with others, without `force`.
    """
    run = Run(Path(root))
    own = run.settings()
    if settings is not None and settings != own:
        raise RunError(f"{run.root}: the upper bound takes the run's own settings; leave out the flags that differ")
    with open_ranks(own.device) as ranks, writing(run, ranks):
        _train_anew(run, own, force, track if ranks.main else silent, ranks)
    scores = read_bound(run)
    assert scores is not None, "it was there, or has been trained"
    share = read_evaluation(run).share() if run.done("evaluate") else None
    return UpperBound(run.full_supervision.segmenter, scores, share)


def _train_anew(run: Run, settings: Settings, force: bool, track: Track, ranks: Ranks) -> None:
    bound = run.full_supervision
    # What an interrupted training has left is continued, forced or not.
    if ranks.main and force and (bound.evaluation_file.exists() or not _fits(bound, settings)):
        run.forget("full_supervision")
    if ranks.agree(ranks.main and read_bound(run) is not None):
        return
    with memory_named(run.root, "segment", settings):
        _train(run, bound, settings, track, ranks)
    for stage in ("evaluate", "report"):
        if ranks.main and run.done(stage):
            repeat_stage(run, stage, track)


def _fits(bound: Run, settings: Settings) -> bool:
    """Tell whether what is there was trained with the settings that count now, or nothing is there."""
    wanted = bound_settings(settings).to_toml()
    return not bound.settings_file.exists() or bound.settings_file.read_text(encoding="utf-8") == wanted


def _train(run: Run, bound: Run, settings: Settings, track: Track, ranks: Ranks) -> None:
    prepared = prepare_together(run, track, ranks)
    if not scored_samples(prepared.dataset, "val"):
        raise DataError(f"{prepared.dataset.root}: no validation image has a true mask, so nothing could be compared")
    if ranks.main and not _fits(bound, settings):
        raise RunError(f"{bound.root}: trained with other settings; --force trains it again")
    if ranks.main:
        remove_temporary(bound.root)
    dataset = true_labels(prepared, bound.masks, track, ranks.main)
    if ranks.main:
        write_atomically(bound.settings_file, bound_settings(settings).to_toml())
    if not ranks.agree(ranks.main and is_trained(bound.segmenter)):
        train_segmenter(dataset, bound.masks, settings, bound.segmenter, track, ranks)
    if not ranks.main:
        return
    scores = score_segmenter(prepared, bound, settings, track)
    assert scores is not None, "there are validation images to score"
    write_bound_scores(bound, scores)
    run.note("full_supervision")
