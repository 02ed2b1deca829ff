"""The ablation: train with each part of the method on and off, from the same seeds, and compare the masks."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tagseg.data.prepare import Prepared, prepare
from tagseg.data.read import read_dataset
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError, RunError
from tagseg.evaluate.evaluate import scored_samples
from tagseg.pipeline import fit_until
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.run.open import is_blank, open_run
from tagseg.settings.bounds import AtLeastOne, check_value
from tagseg.settings.settings import Settings
from tagseg.studies.ablation.arms import ARMS, Arm, arm_settings, run_folder, runs_in
from tagseg.studies.ablation.picture import draw_ablation
from tagseg.studies.ablation.scores import read_score, score_run, settings_of_masks
from tagseg.studies.ablation.table import Ablation
from tagseg.system.changes import is_own
from tagseg.system.files import remove_abandoned, write_atomically
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)

T = TypeVar("T")


def ablate(
    data: str | Path,
    out: str | Path,
    settings: Settings | None = None,
    seeds: int = 3,
    track: Track = silent,
    arms: Sequence[str] = ARMS,
    force: bool = False,
) -> Ablation:
    """Train plain CAM, + contrast, + aggregation and both, with `seeds` seeds each, and compare their pseudo-masks.

    Each arm and seed is a run folder `out/ARM_SEED`, trained, and scored on the training images that have true masks;
    `tagseg fit` can continue it. Finished runs are kept, and an interrupted training resumes after its last finished
    epoch. After each run, ablation.json, ablation.md and ablation.svg are rewritten from all finished runs in `out`,
    so several processes may divide the arms among themselves.

    Args:
        data: a data folder with true masks, which are only used for scoring.
        out: the folder of the runs and the table.
        settings: what all arms share; by default those that `out` was made with.
        seeds: number of seeds, starting with that of the settings.
        track: how to report progress.
        arms: the arms to train now, out of cam, contrast, aggregation and both.
        force: allow settings that differ from those of existing runs; what depends on them is redone.

    Raises:
        ValueError: when data, settings, arms or run folders are wrong, or no training image has a true mask.
    """
    out, saved = Path(out), Path(out) / "settings.toml"
    if settings is None:
        settings = Settings.from_toml(saved) if saved.exists() else Settings()
    if settings.localise.maps_from:
        raise ValueError(
            f"setting localise.maps-from must be empty, got {settings.localise.maps_from!r}: an ablation compares the "
            "maps of its own networks"
        )
    plan = _plan(settings, seeds, arms)
    remove_abandoned(out)
    _require_own_folder(out)
    _require_true_masks(Path(data), settings)
    # All runs are opened before the first is trained, so that one with other settings is found now, not hours later.
    runs = [_open(run_folder(out, arm, seed), data, arm_settings(settings, arm, seed), force) for arm, seed in plan]
    write_atomically(saved, settings.to_toml())
    prepared = prepare(runs[0], track)
    found = _write_table(out, settings, prepared, plan)
    todo = [i for i, run in enumerate(runs) if read_score(run, run.settings(), prepared) is None]
    if todo:
        _check_true_masks(prepared, track)
    for i in todo:
        (arm, seed), run = plan[i], runs[i]
        log.info("run %d of %d: %s, seed %d", i + 1, len(runs), arm, seed)
        named = _with_prefix(track, f"{i + 1}/{len(runs)} {run.root.name}: ")
        fit_until(data, run.root, "train", run.settings(), track=named)
        with hold_lock(run.root):
            score = score_run(prepare(run), run, arm, named)
        log.info("%s, seed %d: mIoU %.1f %%", arm, seed, 100 * score.miou)
        found = _write_table(out, settings, prepared, plan)
    return found


def collect_scores(folder: Path, settings: Settings, prepared: Prepared, asked: Iterable[tuple[Arm, int]]) -> Ablation:
    """Return the scores of all finished runs in `folder` that differ from `settings` only in arm and seed.

    Runs that are asked for and unfinished are named as missing, and so are unfinished runs of other arms with the same
    seeds, which another process may be training.
    """
    asked = list(asked)
    seeds = sorted({seed for _, seed in asked})
    arms = {arm for arm, _ in asked}
    scores = []
    for arm, seed in runs_in(folder):
        run = Run(run_folder(folder, arm, seed))
        score = read_score(run, arm_settings(settings, arm, seed), prepared)
        scores += [score] if score else []
        arms |= {arm} if seed in seeds else set()
    finished = {(score.arm, score.seed) for score in scores}
    wanted = [(arm, seed) for arm in ARMS if arm in arms for seed in seeds]
    missing = tuple(run_folder(folder, *pair).name for pair in wanted if pair not in finished)
    classes = ("background", *prepared.dataset.classes)
    images = len(scored_samples(prepared.dataset, "train"))
    return Ablation(folder, classes, images, tuple(scores), missing, _shared(settings))


def _open(folder: Path, data: str | Path, settings: Settings, force: bool) -> Run:
    with hold_lock(folder):
        return open_run(folder, data, settings, force)


def _plan(settings: Settings, seeds: int, arms: Sequence[str]) -> list[tuple[Arm, int]]:
    """The runs in order: all arms of a seed before the next seed, so that a partial table already compares."""
    check_value("--seeds", seeds, AtLeastOne)
    if not arms or any(arm not in ARMS for arm in arms):
        raise ValueError(f"--arms must be some of {','.join(ARMS)}, got {','.join(arms) or 'none'}")
    return [(arm, seed) for seed in range(settings.seed, settings.seed + seeds) for arm in ARMS if arm in arms]


def _require_own_folder(out: Path) -> None:
    # The folder may hold only runs: a single arm that was fitted before.
    if not out.exists() or (out / "ablation.json").exists():
        return
    if not out.is_dir():
        raise RunError(f"{out}: exists and is not a folder; choose another --out")
    runs = {run_folder(out, arm, seed).name for arm, seed in runs_in(out)}
    # A command that was killed early leaves folders of runs with nothing in them yet.
    runs |= {path.name for arm in ARMS for path in out.glob(f"{arm}_*") if path.is_dir() and is_blank(path)}
    others = {path.name for path in out.iterdir() if not is_own(path.name)} - runs
    if others - ({"settings.toml"} if runs else set()):
        raise RunError(f"{out}: exists and is not an ablation's folder; choose another --out")


def _require_true_masks(data: Path, settings: Settings) -> None:
    dataset = read_dataset(data, settings.data, settings.cache)
    if not scored_samples(dataset, "train"):
        raise DataError(
            f"{data}: no training image has a true mask (read as layout {dataset.layout}), and an ablation compares "
            "pseudo-masks with true masks; put masks of some training images into a folder and give it as --data.masks"
        )


def _check_true_masks(prepared: Prepared, track: Track) -> None:
    # A mask that cannot be scored is found now, not after the first training.
    samples = scored_samples(prepared.dataset, "train")
    for sample in track(samples, "check true masks", len(samples)):
        load_mask(sample, prepared.dataset, prepared.sizes[sample.id])


def _write_table(out: Path, settings: Settings, prepared: Prepared, plan: list[tuple[Arm, int]]) -> Ablation:
    found = collect_scores(out, settings, prepared, plan)
    while True:
        found.save()
        write_atomically(out / "ablation.svg", draw_ablation(found))
        again = collect_scores(out, settings, prepared, plan)
        # Another process may have finished a run meanwhile and written its table before this one.
        if again == found:
            return found
        found = again


def _with_prefix(track: Track, prefix: str) -> Track:
    def prefixed(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        return track(items, prefix + title, total)

    return prefixed


def _shared(settings: Settings) -> dict[str, Any]:
    shared = settings_of_masks(settings)
    del shared["seed"], shared["rca"]["contrast"], shared["rca"]["aggregation"]
    return shared
