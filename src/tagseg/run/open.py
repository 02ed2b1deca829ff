"""Create a run folder, or open an existing one; stages whose settings have changed run again."""

import hashlib
from pathlib import Path
from typing import Any

from tagseg.errors import RunError
from tagseg.run.draft import SETTINGS, RunDraft
from tagseg.run.folder import LOCK, Run
from tagseg.run.manifest import Manifest
from tagseg.run.stages import OUTPUTS, STAGES, Stage
from tagseg.settings.settings import Settings
from tagseg.settings.toml import read_toml
from tagseg.system.changes import is_own
from tagseg.system.files import checksum, write_atomically

SECTIONS: dict[Stage, tuple[str, ...]] = {
    "train": ("seed", "precision", "compile", "maps", "data", "train", "rca", "features"),
    "localise": ("localise",),
    "masks": ("masks", "crf"),
    "segment": ("segment",),
    "evaluate": ("report",),
    "report": (),
}
"""The settings each stage depends on, beyond those of the stages before it."""


def is_blank(root: Path) -> bool:
    """Tell whether a folder is empty, or holds only what a run leaves that was killed before it wrote its manifest."""
    return all(path.name in (LOCK, SETTINGS) or is_own(path.name) for path in root.iterdir())


def open_run(root: str | Path, data: str | Path, settings: Settings, force: bool = False) -> Run:
    """Create a run folder, or open an existing one to continue it.

    Raises:
        RunError: when the folder holds something else, or a run with other data or settings and `force` is not given.
            With `force` the outputs of the first stage whose settings differ, and of all later ones, are deleted.
    """
    from tagseg._version import __version__

    run, data = Run(Path(root)), Path(data).resolve()
    check_places(run, data)
    if is_elsewhere(run, data):
        raise RunError(f"{run.root}: this run was made from {run.data_root()}, not {data}; choose another --out")
    if not run.manifest_file.exists() or run.data_root() != data:
        run.data_file.unlink(missing_ok=True)
        # Written last: a folder without a manifest counts as blank.
        write_atomically(run.settings_file, settings.to_toml())
        digest = checksum(run.settings_file)
        run.store(Manifest(tagseg=__version__, data=str(data), settings=digest, stages={}))
        return run
    change_settings(run, settings, force)
    return run


def check_places(run: Run, data: Path) -> None:
    """Check that a run folder can be made from a data folder (an absolute path), or was.

    Raises:
        RunError: when there is no such data folder, or the run folder holds something else or is damaged.
    """
    if run.manifest_file.exists():
        run.manifest()
        return
    if not data.is_dir():
        raise RunError(f"{data}: no such data folder")
    if run.root.exists() and not (run.root.is_dir() and is_blank(run.root)):
        raise RunError(f"{run.root}: exists and is not a run folder; choose another --out")


def is_elsewhere(run: Run, data: Path) -> bool:
    """Tell whether a run that has made something was made from another data folder (an absolute path): from other
    images, or from the same ones at another place. One that failed before does not occupy its folder."""
    return run.manifest_file.exists() and run.data_root() != data and any(_started(run, stage) for stage in STAGES)


def change_settings(run: Run, settings: Settings, force: bool, first: Stage = "train") -> None:
    """Store `settings` in the run; a change that affects started stages requires `force` and discards these stages.

    Raises:
        RunError: naming the settings that differ, when `force` is not given, or when a stage before `first` (the one
            to run next) would have to run again.
    """
    run.manifest()
    with run.changing() as (_, draft):
        draft_settings(run, draft, settings, force, first)


def draft_settings(run: Run, draft: RunDraft, settings: Settings, force: bool, first: Stage) -> None:
    """Do what `change_settings` does, as part of a change of the run."""
    old, new = _stored(run), settings.to_dict()
    for stage in STAGES:
        changed = [
            line for section in SECTIONS[stage] for line in _differences(section, old.get(section), new[section])
        ]
        if changed and STAGES.index(stage) < STAGES.index(first):
            raise RunError(
                f"{run.root}: made with other settings ({'; '.join(changed)}), which affect stage {stage}, before "
                f"{first}. Use the run's own settings, or start with `tagseg {stage} {run.root} --force`"
            )
        if changed:
            if not force and any(_started(run, later) for later in STAGES[STAGES.index(stage) :]):
                raise RunError(
                    f"{run.root}: made with other settings ({'; '.join(changed)}). Use the run's own settings, another "
                    f"--out, or --force to run it again from stage {stage}"
                )
            draft.discard(stage)
            break
    text = settings.to_toml()
    if draft.manifest.settings != hashlib.sha256(text.encode()).hexdigest() or (
        run.settings_file.read_bytes() != text.encode()
    ):
        draft.set_settings(text)


def _stored(run: Run) -> dict[str, Any]:
    """Return the run's settings; settings that its version did not have are at their defaults."""
    try:
        return run.settings().to_dict()
    except ValueError:  # it has settings that no longer exist: they differ from any new ones
        return read_toml(run.settings_file)


def _started(run: Run, stage: Stage) -> bool:
    # data.json alone does not count: it takes little to make, and a training that could not begin leaves it.
    return any((run.root / output).exists() for output in OUTPUTS[stage] if output != run.data_file.name)


def _differences(name: str, old: Any, new: Any) -> list[str]:
    if isinstance(new, dict):
        old = old or {}
        return [line for key in new for line in _differences(f"{name}.{key}", old.get(key), new[key])]
    return [] if old == new else [f"{name} was {old!r}, now {new!r}"]
