"""The stages in their order, and `fit`, which runs them all and continues where it stopped."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import Sample
from tagseg.errors import RunError
from tagseg.evaluate.evaluate import evaluate
from tagseg.evaluate.scores import Evaluation, read_evaluation
from tagseg.masks.foreign_maps import import_maps
from tagseg.masks.localise import localise
from tagseg.masks.make import Masks, has_masks, make_masks, open_workers
from tagseg.masks.update import REVIEWED, unlearned, update_masks
from tagseg.rca.train import train
from tagseg.report.page import report
from tagseg.run.decisions import decision_digests
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.run.open import change_settings, open_run
from tagseg.run.stages import STAGES, Stage, needed_stages
from tagseg.segment.labels import foreign_labels
from tagseg.segment.self_training import self_train
from tagseg.segment.train import train_segmenter
from tagseg.settings.settings import Settings
from tagseg.system.process import ran_out
from tagseg.system.progress import Track, silent
from tagseg.training.checkpoint import is_trained
from tagseg.training.distributed import ALONE, Ranks, open_ranks

log = logging.getLogger(__name__)

MEMORY: dict[Stage, tuple[str, ...]] = {
    "train": ("train.batch", "train.crop", "workers"),
    "localise": ("localise.max_side",),
    "masks": ("masks.max_side", "workers"),
    "segment": ("segment.batch", "segment.crop", "segment.max_side", "workers"),
    "evaluate": ("segment.max_side",),
    "report": ("report.examples",),
}
"""The settings by which each stage takes less memory."""


@dataclass(frozen=True)
class Fitted:
    """A finished run: its folder, pseudo-masks of the training images (after self-training where there is any), figures
    (None where no truth exists), report."""

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
    training continues behind its last finished epoch. Masks that were reviewed since (`tagseg review`) are made anew as
    decided, and the segmentation network learns anew from them. Processes that were launched together (`accelerate
    launch`) train together; the main one does all else, while the others wait.

    Args:
        data: a data folder of any layout that `read_dataset` recognises.
        out: the run folder.
        settings: all settings; by default those of the existing run, or the defaults.
        force: allow other settings than the existing run's; what depends on them is done again.
        track: how to report progress.
        until: the last stage to run; None is returned when it is not the last there is.

    Raises:
        ValueError: when data, settings or run folder are wrong, another process is at work on the run, or memory runs
            out; the message says what and where.
        WriteError: when a file cannot be written, because the disk is full for example.
        KeyboardInterrupt: at Ctrl-C, a training's state saved behind its step; SIGTERM ends the process likewise.
    """
    run = Run(Path(out))
    if settings is None:
        settings = run.settings() if run.manifest_file.exists() else Settings()
    with open_ranks(settings.device) as ranks, writing(run, ranks):
        if ranks.main:
            open_run(out, data, settings, force)
            if run.done("masks") and run.decisions_file.exists():
                _honour_decisions(run, track)
        ranks.agree()
        _run_stages(run, settings, track, until, ranks)
        if until != STAGES[-1]:
            return None
        return Fitted(run.root, run.final().masks, read_evaluation(run), run.report_file)


def _run_stages(run: Run, settings: Settings, track: Track, until: Stage, ranks: Ranks) -> None:
    wanted = [stage for stage in needed_stages(settings) if STAGES.index(stage) <= STAGES.index(until)]
    for stage in wanted:
        if ranks.agree(ranks.main and run.done(stage)):
            continue
        if stage != "localise" or "masks" not in wanted:
            repeat_stage(run, stage, track, ranks)
        elif ranks.main:
            localise_and_mask(prepare(run, track), run, track)


def run_stage(
    root: str | Path, stage: Stage, settings: Settings | None = None, force: bool = False, track: Track = silent
) -> Run:
    """Run one stage of an existing run folder.

    Raises:
        RunError: when an earlier stage has not finished, or this one has and `force` is not given. With `force` its
            outputs and those of all later stages are deleted first. When another process is at work on the run, or
            memory runs out.
        WriteError: when a file cannot be written.
    """
    run = Run(Path(root))
    run.manifest()
    with open_ranks((settings or run.settings()).device) as ranks, writing(run, ranks):
        if ranks.main:
            _begin_stage(run, stage, settings, force)
        ranks.agree()
        repeat_stage(run, stage, track, ranks)
    return run


def writing(run: Run, ranks: Ranks) -> contextlib.AbstractContextManager[None]:
    """Return the block in which a run folder is written to (see `hold_lock`); of several processes the main one's."""
    return hold_lock(run.root) if ranks.main else contextlib.nullcontext()


def _begin_stage(run: Run, stage: Stage, settings: Settings | None, force: bool) -> None:
    """Change the settings, discard what is done and will be done again, and check that the stages before are done."""
    if settings is not None:
        change_settings(run, settings, force, stage)
    if run.done(stage):
        if not force:
            raise RunError(f"{run.root}: stage {stage} is done; --force does it again (and undoes the later stages)")
        run.discard(stage)
    needed = needed_stages(run.settings())
    if stage not in needed:
        raise RunError(f"{run.root}: {_taken(run.settings())}; it has no stage {stage}")
    for earlier in needed[: needed.index(stage)]:
        run.require(earlier)


def _taken(settings: Settings) -> str:
    if settings.segment.labels:
        return f"learns from the masks in {settings.segment.labels}"
    return f"makes masks from the maps in {settings.localise.maps_from}"


def repeat_stage(run: Run, stage: Stage, track: Track = silent, ranks: Ranks = ALONE) -> None:
    """Run a stage whether or not it was done before; what it finds of its own outputs it keeps.

    Several processes (`ranks`) share the stages that train; all others are the main one's alone.
    """
    if not ranks.main:
        if stage in _SHARED:
            with memory_named(run.root, stage, run.settings()):
                _SHARED[stage](run, silent, ranks)
        return
    log.info("stage %s", stage)
    run.remove_leftovers(stage)
    with memory_named(run.root, stage, run.settings()), run.stage(stage) as figures:
        figures |= _SHARED[stage](run, track, ranks) if stage in _SHARED else _STAGES[stage](run, track)


def _honour_decisions(run: Run, track: Track) -> None:
    """Make masks anew that were reviewed since, and let the segmentation network learn anew where any were."""
    update_masks(prepare(run), run, track)
    if count := unlearned(run):
        log.info("%d masks were reviewed since the segmentation network learned from them: it learns anew", count)
        run.discard("segment")


def localise_and_mask(prepared: Prepared, run: Run, track: Track = silent) -> None:
    """Run the stages localise and masks; worker processes make masks while the network still finds maps.

    A second counts for one stage only: masks made beside localise leave less to do for the stage masks.
    """
    beside = run.settings().workers > 0
    for stage in ("localise", "masks"):
        run.remove_leftovers(stage)
    with open_workers(prepared, run) as workers:

        def then(sample: Sample) -> None:
            if beside and not has_masks(run, sample.id):
                workers.give(sample)

        log.info("stage localise%s", ", masks beside it" if beside else "")
        with memory_named(run.root, "localise", run.settings()), run.stage("localise") as figures:
            figures |= _find_maps(prepared, run, track, then)
        log.info("stage masks")
        with memory_named(run.root, "masks", run.settings()), run.stage("masks") as figures:
            figures |= _known_decisions(run)
            figures |= _masks_figures(make_masks(prepared, run, track, workers))


@contextlib.contextmanager
def memory_named(root: Path, stage: Stage, settings: Settings) -> Iterator[None]:
    """Turn what is raised when memory runs out in a stage into an error that names the settings to lower.

    Raises:
        RunError: when memory ran out in the block, or the system killed a process that read images for it.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        cause = ran_out(error)
        if not cause:
            raise
        values = settings.to_dict()
        lower = ", ".join(f"--{name.replace('_', '-')} (now {_value(values, name)})" for name in MEMORY[stage])
        raise RunError(
            f"{root}: stage {stage} ran out of memory ({cause}); lower {lower} and run the same command again "
            "(a stage that was begun asks for --force)"
        ) from error


def _value(values: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


def prepare_together(run: Run, track: Track, ranks: Ranks) -> Prepared:
    """Return the data set as `prepare` does; of several processes the main one checks it, the others then read it.

    Raises:
        RunError: when another process does not see what the main one wrote.
    """
    prepared = prepare(run, track) if ranks.main else None
    ranks.agree()
    if prepared is None and not run.data_file.exists():
        raise RunError(f"{run.data_file}: not there; all machines must see the same run folder")
    return prepared or prepare(run)


def _train(run: Run, track: Track, ranks: Ranks) -> dict[str, Any]:
    dataset = prepare_together(run, track, ranks).dataset
    # It is trained where the process was killed before the stage was noted.
    if not ranks.agree(ranks.main and is_trained(run.network)):
        train(dataset, run.settings(), run.network, track, ranks)
    return {}


def _localise(run: Run, track: Track) -> dict[str, Any]:
    return _find_maps(prepare(run, track), run, track)


def _find_maps(
    prepared: Prepared, run: Run, track: Track, then: Callable[[Sample], None] | None = None
) -> dict[str, Any]:
    settings, source = run.settings().localise, {}
    if settings.maps_from:
        done = import_maps(prepared.dataset, run, track, then)
        source = {"maps_from": settings.maps_from, "maps_hold": settings.maps_hold}
    else:
        done = localise(prepared.dataset, run, track, then=then)
    return {"images": done.images, "images_per_s": done.images_per_s} | source


def _masks(run: Run, track: Track) -> dict[str, Any]:
    return _known_decisions(run) | _masks_figures(make_masks(prepare(run), run, track))


def _known_decisions(run: Run) -> dict[str, Any]:
    known = decision_digests(run)
    return {REVIEWED: known} if known else {}


def _masks_figures(done: Masks) -> dict[str, Any]:
    pace = {"images": done.images, "images_per_s": done.images_per_s}
    return pace | {"worker_peak_mb": round(done.worker_peak_mb)}


def _segment(run: Run, track: Track, ranks: Ranks) -> dict[str, Any]:
    settings, prepared, known = run.settings(), prepare_together(run, track, ranks), _known_decisions(run)
    if ranks.main and not settings.segment.labels:
        update_masks(prepared, run, track)
    if ranks.agree(ranks.main and is_trained(run.segmenter)):
        return known
    if settings.segment.labels:
        labelled = foreign_labels(prepared, Path(settings.segment.labels), run.labels, track, ranks.main)
        train_segmenter(labelled, run.labels, settings, run.segmenter, track, ranks)
    else:
        self_train(prepared, run, track, ranks)
    return known


def _evaluate(run: Run, track: Track) -> dict[str, Any]:
    evaluate(prepare(run), run, track)
    return {}


def _report(run: Run, track: Track) -> dict[str, Any]:
    report(run, track)
    return {}


_SHARED: dict[Stage, Callable[[Run, Track, Ranks], dict[str, Any]]] = {"train": _train, "segment": _segment}
"""What the stages do that several processes share, and the figures of their own that they note in the manifest."""

_STAGES: dict[Stage, Callable[[Run, Track], dict[str, Any]]] = {
    "localise": _localise,
    "masks": _masks,
    "evaluate": _evaluate,
    "report": _report,
}
"""The same of all others."""
