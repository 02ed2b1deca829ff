"""The stages in order, and `fit`, which runs them all and resumes where it stopped."""

import contextlib
import dataclasses
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import msgspec

from tagseg.data.check import require_saliency
from tagseg.data.foreign import foreign_digest, foreign_source
from tagseg.data.given import GivenData, write_tags
from tagseg.data.prepare import DataChanged, Prepared, follow_data, prepare, prepare_changed
from tagseg.data.records import Sample
from tagseg.data.true_masks import truth_digest
from tagseg.errors import RunError
from tagseg.evaluate.evaluate import evaluate
from tagseg.evaluate.scores import Evaluation, read_evaluation
from tagseg.features.extract import make_features
from tagseg.masks.foreign_maps import import_maps
from tagseg.masks.localise import localise
from tagseg.masks.make import has_masks, make_masks, open_workers
from tagseg.masks.update import REVIEWED, unlearned, update_masks
from tagseg.masks.workers import MaskWorkers
from tagseg.rca.train import train_frozen
from tagseg.report.page import report
from tagseg.report.summary import summary_html, summary_line
from tagseg.review.assess import assess_locked
from tagseg.run.clock import Clock
from tagseg.run.estimate import machine_speed, stage_seconds
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.run.memory import memory_named
from tagseg.run.open import change_settings, is_elsewhere, open_run
from tagseg.run.stages import STAGES, Stage, needed_stages
from tagseg.run.taught import answers, mask_digests, taught_digest
from tagseg.segment.labels import foreign_labels
from tagseg.segment.self_training import self_train
from tagseg.settings.arguments import refuse_other, refuse_unknown
from tagseg.settings.presets import DEFAULT_QUALITY, preset
from tagseg.settings.settings import Settings
from tagseg.system.progress import Track, silent, tell
from tagseg.teaching.apply import NOTE, apply_answers, entries_of, is_applied
from tagseg.trainer import Trainer, open_trainer, take_part
from tagseg.training.checkpoint import is_trained

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """A finished run: its folder, the pseudo-masks of the training images (after self-training, if there is any), the
    figures (None where true masks are missing) and the report. A notebook shows it."""

    run: Path
    masks: Path
    evaluation: Evaluation
    report: Path

    def __repr__(self) -> str:
        return f"Fitted(run={str(self.run)!r}, masks={str(self.masks)!r}, report={str(self.report)!r})"

    def _repr_html_(self) -> str:
        return summary_html(Run(self.run))


@overload
def fit(
    data: GivenData,
    out: str | Path,
    settings: Settings | None = None,
    force: bool = False,
    track: Track | None = None,
    *,
    processes: int = 1,
) -> Fitted: ...


@overload
def fit(
    data: GivenData,
    out: str | Path,
    settings: Settings | None = None,
    force: bool = False,
    track: Track | None = None,
    until: Stage = "report",
    processes: int = 1,
) -> Fitted | None: ...


def fit(
    data: GivenData,
    out: str | Path,
    settings: Settings | None = None,
    force: bool = False,
    track: Track | None = None,
    until: Stage | None = None,
    processes: int = 1,
    **unknown: object,
) -> Fitted | None:
    """Train on a folder of tagged images and return masks, a segmentation network, figures and a report.

    Runs train, localise, masks, segment, evaluate and report. Finished stages of an existing run are kept, and a
    training resumes after its last finished epoch. Masks that were reviewed since (`tagseg review`) are made again as
    decided, and the segmentation network learns from them again.

    `processes` are started to train the networks together, each on a GPU of its own if there are any; this process does
    everything else. On several machines, launch the processes yourself: with `accelerate launch` the main one drives,
    and the others sleep while no network is trained.

    Args:
        data: a data folder in any layout that `read_dataset` recognises. Or photographs with their tags: a dict, pairs,
            or a DataFrame with columns image and tags; they are written to the table OUT.tags.csv, beside the run.
        out: the run folder.
        settings: all settings; by default those of the existing run, or in a new folder `preset("balanced")`.
        force: allow settings or data that differ from the existing run's; the stages that depend on them are run again.
        track: how to report progress; by default one clock for all stages, and one line at the end.
        until: deprecated, use `fit_until`. The last stage to run; unless it is `report`, None is returned.
        processes: how many processes train the networks.

    Raises:
        TypeError: when an argument is unknown or has another type; says what it should be.
        ValueError: when data, settings or run folder are wrong, another process is writing to the run, or memory runs
            out; the message says what and where.
        WriteError: when a file cannot be written, for example because the disk is full.
        KeyboardInterrupt: at Ctrl-C, after the state of a training is saved; SIGTERM ends the process likewise.
    """
    if until is not None:
        warnings.warn("fit(until=...) is deprecated: use tagseg.fit_until", DeprecationWarning, stacklevel=2)
    refuse_unknown(unknown)
    refuse_other(settings)
    last = until or STAGES[-1]
    run = fit_until(data, out, last, settings, force, Clock() if track is None else track, processes)
    if last != STAGES[-1]:
        return None
    done = Fitted(run.root, run.final().masks, read_evaluation(run), run.report_file)
    if track is None:
        tell(summary_line(run))
    return done


def fit_until(
    data: GivenData,
    out: str | Path,
    stage: Stage,
    settings: Settings | None = None,
    force: bool = False,
    track: Track = silent,
    processes: int = 1,
) -> Run:
    """Do what `fit` does, up to and including a stage, and return the run; `fit` resumes from there.

    Raises:
        ValueError, WriteError, KeyboardInterrupt: as `fit`.
    """
    run = Run(Path(out))
    if settings is None:
        settings = run.settings() if run.manifest_file.exists() else preset(DEFAULT_QUALITY)
    if not isinstance(data, str | os.PathLike):
        table = run.root.with_name(f"{run.root.name}.tags.csv").absolute()
        data = write_tags(data, table)
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, tags=str(table)))
    if take_part(settings.device):
        return run
    with open_trainer(run, settings.device, processes) as trainer, hold_lock(run.root):
        if is_elsewhere(run, Path(data).resolve()):
            follow_data(run, Path(data).resolve())
        open_run(out, Path(data), settings, force)
        work = _Work(run, track, trainer)
        _compare_data(work, force)
        if run.done("train") and not is_applied(run):
            apply_answers(work.prepared, run, track)
        if run.done("masks") and run.review.exists():
            _honour_decisions(work)
        if _is_truth_other(work):
            log.info("the true masks in %s have changed since they were scored: they are scored again", data)
            run.discard("evaluate")
        wanted = STAGES[: STAGES.index(stage) + 1]
        done = set(run.manifest().stages) - set(run.manifest().again)
        todo = [one for one in needed_stages(settings) if one in wanted and one not in done]
        if isinstance(track, Clock) and todo:
            _plan(track, work.prepared, settings, todo)
        _run_stages(work, todo)
    return run


def _plan(clock: Clock, prepared: Prepared, settings: Settings, todo: Collection[Stage]) -> None:
    """Tell the clock how long the stages that are to be run take, roughly."""
    sizes = Counter(prepared.sizes[sample.id] for sample in prepared.dataset.split("train"))
    seconds = stage_seconds(settings, sizes, machine_speed())
    clock.planned = {stage: seconds[stage] for stage in todo}


def run_stage(
    root: str | Path,
    stage: Stage,
    settings: Settings | None = None,
    force: bool = False,
    track: Track = silent,
    processes: int = 1,
) -> Run:
    """Run one stage of an existing run folder; `processes` as in `fit`.

    Raises:
        RunError: when an earlier stage has not finished, or this one has and `force` is not given. With `force` its
            outputs and those of all later stages are deleted first. When another process is writing to the run, or
            memory runs out.
        WriteError: when a file cannot be written.
    """
    run = Run(Path(root))
    run.manifest()
    device = (settings or run.settings()).device
    if take_part(device):
        return run
    with open_trainer(run, device, processes) as trainer, hold_lock(run.root):
        _begin_stage(run, stage, settings, force)
        _run_stages(_Work(run, track, trainer), [stage])
    return run


def repeat_stage(run: Run, stage: Stage, track: Track = silent) -> None:
    """Run a stage whether or not it has finished; its existing outputs are kept where the stage itself keeps them."""
    _run_stages(_Work(run, track, Trainer(run)), [stage])


def _begin_stage(run: Run, stage: Stage, settings: Settings | None, force: bool) -> None:
    """Change the settings, discard what will be done again, and check that the earlier stages have finished."""
    if settings is not None:
        change_settings(run, settings, force, stage)
    if run.done(stage):
        if not force:
            raise RunError(f"{run.root}: stage {stage} is done; --force runs it again (and discards the later stages)")
        run.discard(stage)
    needed = needed_stages(run.settings())
    if stage not in needed:
        raise RunError(f"{run.root}: {_source(run.settings())}; it has no stage {stage}")
    for earlier in needed[: needed.index(stage)]:
        run.require(earlier)


def _source(settings: Settings) -> str:
    if settings.segment.labels:
        return f"learns from the masks in {settings.segment.labels}"
    return f"makes masks from the maps in {settings.localise.maps_from}"


@dataclass(frozen=True)
class _Work:
    """What all stages of a command share: the run, progress reports, who trains, and the data set, which is read once,
    when a stage first needs it."""

    run: Run
    track: Track
    trainer: Trainer

    @cached_property
    def prepared(self) -> Prepared:
        return prepare(self.run, self.track)


def _run_stages(work: _Work, stages: Collection[Stage]) -> None:
    """Run stages in order; stages that belong together are run by one function."""
    for group, function in _STAGES.items():
        if todo := [stage for stage in group if stage in stages]:
            for stage in todo:
                work.run.remove_leftovers(stage)
            function(work, todo)


@contextlib.contextmanager
def _recorded(run: Run, stage: Stage, track: Track) -> Iterator[dict[str, Any]]:
    """Record a stage in the manifest when the block succeeds; yields the dict for its figures (see `Run.stage`)."""
    if isinstance(track, Clock):
        track.enter(stage)
    else:
        log.info("stage %s", stage)
    with memory_named(run.root, stage, run.settings()), run.stage(stage) as figures:
        yield figures


def _compare_data(work: _Work, force: bool) -> None:
    """Raise a RunError if the data has changed since the run began, or with `force` run the stages concerned again."""
    if not work.run.data_file.exists():
        return
    try:
        work.prepared  # noqa: B018 - reads and compares
    except DataChanged as change:
        if not force:
            raise
        log.warning("%s; running again from stage %s", change.what, change.stage)
        if change.stage == STAGES[0]:
            work.run.discard(change.stage)
        else:
            prepare_changed(work.run, change.stage, work.track)


def _is_truth_other(work: _Work) -> bool:
    """Tell whether the true masks of the data are others than those that were scored."""
    run = work.run
    known = run.manifest().stages["evaluate"].truth if run.done("evaluate") else ""
    return bool(known) and known != truth_digest(work.prepared.dataset)


def _honour_decisions(work: _Work) -> None:
    """Make masks that were reviewed since again, and let the segmentation network learn again if there are any."""
    run = work.run
    update_masks(work.prepared, run, work.track)
    if count := unlearned(run):
        log.info(
            "%d masks were reviewed since the segmentation network learned from them: it learns from them again", count
        )
        run.discard("segment")
    elif run.done("segment") and run.manifest().stages["segment"].taught != taught_digest(run):
        log.info("the masks were taught since the segmentation network learned from them: it learns from them again")
        run.discard("segment")


def _train(work: _Work, todo: Collection[Stage]) -> None:
    run = work.run
    with _recorded(run, "train", work.track) as figures:
        figures |= _known_answers(run)
        dataset = work.prepared.dataset
        # It is trained already if the process was killed before the stage was recorded.
        if is_trained(run.network):
            return
        if run.settings().train.method == "frozen":
            if run.settings().maps == "saliency":  # now, not after minutes of features
                require_saliency(dataset, run.settings().data, "maps = saliency")
            cache, given, digest = make_features(work.prepared, run, work.track), answers(run), taught_digest(run)
            teach = partial(entries_of, given, work.prepared, cache=cache, digest=digest) if digest else None
            train_frozen(dataset, cache, run.settings(), run.network, work.track, teach)
        else:
            work.trainer.train_classifier(dataset, work.track)


def _pseudo_masks(work: _Work, todo: Collection[Stage]) -> None:
    localise_and_mask(work.prepared, work.run, work.track, todo)


def localise_and_mask(
    prepared: Prepared, run: Run, track: Track = silent, stages: Collection[Stage] = ("localise", "masks")
) -> None:
    """Run localise, masks or both; with both, worker processes make masks while the network still finds maps.

    Each second counts for one stage only: masks made during localise leave less to do for the stage masks.
    """
    with open_workers(prepared, run) if "masks" in stages else contextlib.nullcontext() as workers:
        if "localise" in stages:
            with _recorded(run, "localise", track) as figures:
                figures |= _known_answers(run)
                figures |= _find_maps(prepared, run, track, workers)
        if workers is not None:
            with _recorded(run, "masks", track) as figures:
                figures |= _known_decisions(run) | _known_answers(run)
                done = make_masks(prepared, run, track, workers)
                figures |= {"images": done.images, "images_per_s": done.images_per_s}
                figures |= {"worker_peak_mb": round(done.worker_peak_mb)}


def _find_maps(prepared: Prepared, run: Run, track: Track, workers: MaskWorkers | None) -> dict[str, Any]:
    """Make the maps, and give every image whose maps are finished to the workers, if there are any."""
    settings, source = run.settings(), {}

    def give(sample: Sample) -> None:
        if workers is not None and settings.workers > 0 and not has_masks(run, sample.id):
            workers.give(sample)

    if settings.localise.maps_from:
        done = import_maps(prepared.dataset, run, track, give)
        _note_foreign(run, prepared)
        source = {"maps_from": settings.localise.maps_from, "maps_hold": settings.localise.maps_hold}
    else:
        cache = make_features(prepared, run, track) if settings.train.method == "frozen" else None
        done = localise(prepared.dataset, run, track, then=give, cache=cache)
    return {"images": done.images, "images_per_s": done.images_per_s} | source


def _note_foreign(run: Run, prepared: Prepared) -> None:
    """Record which files of another tool a stage has read, so that other ones are noticed."""
    manifest, found = run.manifest(), foreign_source(run.settings())
    if found is not None and found[0] not in manifest.foreign:
        stage, source = found
        digest = foreign_digest(source, prepared.dataset.split("train"))
        run.store(msgspec.structs.replace(manifest, foreign={**manifest.foreign, stage: digest}))


def _known_decisions(run: Run) -> dict[str, Any]:
    known = mask_digests(run)
    return {REVIEWED: known} if known else {}


def _known_answers(run: Run) -> dict[str, Any]:
    return {NOTE: digest} if (digest := taught_digest(run)) else {}


def _segment(work: _Work, todo: Collection[Stage]) -> None:
    run, prepared = work.run, work.prepared
    settings, learn = run.settings(), work.trainer.train_segmenter
    with _recorded(run, "segment", work.track) as figures:
        figures |= _known_decisions(run) | _known_answers(run)
        if not settings.segment.labels:
            update_masks(prepared, run, work.track)
        if is_trained(run.segmenter):
            return
        if settings.segment.labels:
            labelled = foreign_labels(prepared, Path(settings.segment.labels), run.labels, work.track)
            _note_foreign(run, prepared)
            learn(labelled, run.labels, settings, run.segmenter, work.track)
        else:
            self_train(prepared, run, work.track, learn)


def _evaluate(work: _Work, todo: Collection[Stage]) -> None:
    with _recorded(work.run, "evaluate", work.track) as figures:
        figures |= {"truth": truth_digest(work.prepared.dataset)}
        evaluate(work.prepared, work.run, work.track)
        if not work.run.settings().segment.labels:
            assess_locked(work.run, work.prepared.dataset.split("train"), work.track)


def _report(work: _Work, todo: Collection[Stage]) -> None:
    if _is_truth_other(work):
        log.warning(
            "the true masks in %s have changed since they were scored; the report shows the earlier scores: "
            "`tagseg evaluate %s --force` scores them again",
            work.run.data_root(),
            work.run.root,
        )
    with _recorded(work.run, "report", work.track):
        report(work.run, work.track)


_STAGES: dict[tuple[Stage, ...], Callable[[_Work, Collection[Stage]], None]] = {
    ("train",): _train,
    ("localise", "masks"): _pseudo_masks,
    ("segment",): _segment,
    ("evaluate",): _evaluate,
    ("report",): _report,
}
"""The functions of the stages in order: each runs those of its stages that are to be run."""
