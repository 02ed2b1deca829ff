"""The stages in their order, and `fit`, which runs them all and continues where it stopped."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tagseg.data.prepare import prepare
from tagseg.masks.localise import localise
from tagseg.masks.write import make_masks
from tagseg.measure.evaluate import Evaluation, evaluate, read_evaluation
from tagseg.progress import Track, silent
from tagseg.rca.train import train
from tagseg.report.page import report
from tagseg.run import STAGES, Run, RunError, Stage, change_settings, open_run
from tagseg.segment.train import train_segmenter
from tagseg.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """A finished run: its folder, pseudo-masks of the training images, figures (None where no truth exists), report."""

    run: Path
    masks: Path
    evaluation: Evaluation
    report: Path


def fit(
    data: str | Path,
    out: str | Path,
    settings: Settings | None = None,
    force: bool = False,
    track: Track = silent,
    until: Stage = "report",
) -> Fitted | None:
    """Train on a folder of tagged images and return masks, a segmentation network, figures and a report.

    Runs train -> localise -> masks -> segment -> evaluate -> report; finished stages of an existing run are kept, and a
    training continues behind its last finished epoch.

    Args:
        data: a data folder of any layout that `read_dataset` recognises.
        out: the run folder.
        settings: all settings; by default those of the existing run, or the defaults.
        force: allow other settings than the existing run's; what depends on them is done again.
        track: how to report progress.
        until: the last stage to run; None is returned when it is not the last there is.

    Raises:
        ValueError: when data, settings or run folder are wrong; the message says what and where.
    """
    run = Run(Path(out))
    if settings is None:
        settings = run.settings() if run.manifest_file.exists() else Settings()
    run = open_run(out, data, settings, force)
    for stage in STAGES[: STAGES.index(until) + 1]:
        if not run.done(stage):
            _run(run, stage, track)
    return None if until != STAGES[-1] else Fitted(run.root, run.masks, read_evaluation(run), run.report_file)


def run_stage(
    root: str | Path, stage: Stage, settings: Settings | None = None, force: bool = False, track: Track = silent
) -> Run:
    """Run one stage of an existing run folder.

    Raises:
        RunError: when an earlier stage has not finished, or this one has and `force` is not given. With `force` its
            outputs and those of all later stages are deleted first.
    """
    run = Run(Path(root))
    if settings is not None:
        change_settings(run, settings, force, stage)
    if run.done(stage):
        if not force:
            raise RunError(f"{run.root}: stage {stage} is done; --force does it again (and undoes the later stages)")
        run.discard(stage)
    for earlier in STAGES[: STAGES.index(stage)]:
        run.require(earlier)
    _run(run, stage, track)
    return run


def _run(run: Run, stage: Stage, track: Track) -> None:
    log.info("stage %s", stage)
    with run.stage(stage):
        _STAGES[stage](run, track)


def _train(run: Run, track: Track) -> None:
    train(prepare(run, track).dataset, run.settings(), run.network, track)


def _localise(run: Run, track: Track) -> None:
    localise(prepare(run).dataset, run, track)


def _masks(run: Run, track: Track) -> None:
    make_masks(prepare(run), run, track)


def _segment(run: Run, track: Track) -> None:
    train_segmenter(prepare(run).dataset, run.masks, run.settings(), run.segmenter, track)


def _evaluate(run: Run, track: Track) -> None:
    evaluate(prepare(run), run, track)


def _report(run: Run, track: Track) -> None:
    report(run, track)


_STAGES: dict[Stage, Callable[[Run, Track], None]] = {
    "train": _train,
    "localise": _localise,
    "masks": _masks,
    "segment": _segment,
    "evaluate": _evaluate,
    "report": _report,
}
