"""The ablation: every part of the method switched on and off, the same seeds for each, one table."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from tagseg.data.images import load_mask
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.read import read_dataset
from tagseg.errors import DataError, RunError
from tagseg.evaluate.evaluate import scored_samples
from tagseg.pipeline import fit_until
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.run.open import open_run
from tagseg.settings.settings import Settings
from tagseg.studies.ablation.arms import arm_settings, collect_scores, read_score, run_folder, runs_in, score_run
from tagseg.studies.ablation.picture import draw_ablation
from tagseg.studies.ablation.table import ARMS, Ablation, Arm
from tagseg.system.files import write_atomically
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

    Every arm and seed is a run folder `out/ARM_SEED`, trained and scored on the training images that have true masks;
    `tagseg fit` continues it. Finished runs are kept and trainings continue behind their last finished epoch. After
    every run ablation.json, ablation.md and ablation.svg are written anew from all that is finished in `out`, so
    several processes may share the arms among them.

    Args:
        data, out: a data folder with true masks, used to score alone; the folder of the runs and of the table.
        settings: what all arms share; by default those that `out` was made with.
        seeds: how many seeds, from the settings' own on.
        track: how to report progress.
        arms: the arms to train now, of cam, contrast, aggregation, both.
        force: allow other settings than existing runs'; what depends on them is done again.

    Raises:
        ValueError: when data, settings, arms or run folders are wrong, or no training image has a true mask.
    """
    out, saved = Path(out), Path(out) / "settings.toml"
    if settings is None:
        settings = Settings.from_toml(saved) if saved.exists() else Settings()
    if settings.localise.maps_from:
        raise ValueError(
            f"setting localise.maps-from: got {settings.localise.maps_from!r}, expected none: an ablation compares the "
            "maps of its own networks"
        )
    plan = _plan(settings, seeds, arms)
    _require_place(out)
    _require_truth(Path(data), settings)
    # All are opened before the first is trained: a folder of other settings is better found now than hours later.
    runs = [_open(run_folder(out, arm, seed), data, arm_settings(settings, arm, seed), force) for arm, seed in plan]
    write_atomically(saved, settings.to_toml())
    prepared = prepare(runs[0], track)
    found = _write(out, settings, prepared, plan)
    todo = [i for i, run in enumerate(runs) if read_score(run, run.settings(), prepared) is None]
    if todo:
        _check_truth(prepared, track)
    for i in todo:
        (arm, seed), run = plan[i], runs[i]
        log.info("run %d of %d: %s, seed %d", i + 1, len(runs), arm, seed)
        said = _titled(track, f"{i + 1}/{len(runs)} {run.root.name}: ")
        fit_until(data, run.root, "train", run.settings(), track=said)
        with hold_lock(run.root):
            score = score_run(prepare(run), run, arm, said)
        log.info("%s, seed %d: mIoU %.1f %%", arm, seed, 100 * score.miou)
        found = _write(out, settings, prepared, plan)
    return found


def _open(folder: Path, data: str | Path, settings: Settings, force: bool) -> Run:
    with hold_lock(folder):
        return open_run(folder, data, settings, force)


def _plan(settings: Settings, seeds: int, arms: Sequence[str]) -> list[tuple[Arm, int]]:
    """The runs in their order: all arms of a seed before the next, so that a partial table compares."""
    if seeds < 1:
        raise ValueError(f"--seeds: got {seeds}, expected at least 1")
    if not arms or any(arm not in ARMS for arm in arms):
        raise ValueError(f"--arms: got {','.join(arms) or 'none'}, expected some of {','.join(ARMS)}")
    return [(arm, seed) for seed in range(settings.seed, settings.seed + seeds) for arm in ARMS if arm in arms]


def _require_place(out: Path) -> None:
    # Runs alone may lie there already: a single arm fitted before.
    if not out.exists() or (out / "ablation.json").exists():
        return
    if not out.is_dir():
        raise RunError(f"{out}: exists and is not a folder; choose another --out")
    runs = {run_folder(out, arm, seed).name for arm, seed in runs_in(out)}
    others = {path.name for path in out.iterdir() if not path.name.startswith(".writing-")} - runs
    if others - ({"settings.toml"} if runs else set()):
        raise RunError(f"{out}: exists and is not an ablation's folder; choose another --out")


def _require_truth(data: Path, settings: Settings) -> None:
    dataset = read_dataset(data, settings.data, settings.cache)
    if not scored_samples(dataset, "train"):
        raise DataError(
            f"{data}: no training image has a true mask to score with (read as layout {dataset.layout}); an ablation "
            "compares pseudo-masks with true ones: give masks of some training images, in a folder with --data.masks"
        )


def _check_truth(prepared: Prepared, track: Track) -> None:
    # A mask that cannot be scored is better found now than behind the first training.
    samples = scored_samples(prepared.dataset, "train")
    for sample in track(samples, "check true masks", len(samples)):
        load_mask(sample, prepared.dataset, prepared.sizes[sample.id])


def _write(out: Path, settings: Settings, prepared: Prepared, plan: list[tuple[Arm, int]]) -> Ablation:
    found = collect_scores(out, settings, prepared, plan)
    while True:
        found.save()
        write_atomically(out / "ablation.svg", draw_ablation(found))
        again = collect_scores(out, settings, prepared, plan)
        # Another process may have finished a run meanwhile, and have written its table before this one.
        if again == found:
            return found
        found = again


def _titled(track: Track, prefix: str) -> Track:
    def titled(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        return track(items, prefix + title, total)

    return titled
