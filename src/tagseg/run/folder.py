"""The run folder: where each stage reads and writes, and which stages have finished."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tagseg.errors import RunError
from tagseg.run.draft import MANIFEST, SETTINGS, RunDraft, changing_run
from tagseg.run.manifest import Manifest, OtherNote, StageNote, read_manifest, write_manifest
from tagseg.run.stages import OTHERS, OUTPUTS, ROUNDS, Other, Stage, needed_stages
from tagseg.settings.settings import Settings
from tagseg.system.files import TEMPORARY, checksum, files_in, remove_temporary
from tagseg.system.process import peak_memory_mb, reset_peak_memory
from tagseg.system.untrusted import is_file

LOCK = ".lock"

"""The file that a process locks while it writes to a folder (see tagseg.run.lock)."""

TRAINED_WEIGHTS = "network.safetensors"
"""The weights of a network in the folder that its training wrote."""

EXPORTED_WEIGHTS = "model.safetensors"
"""The weights of a segmentation network in an exported folder, under the name that the Hugging Face Hub knows."""


@dataclass(frozen=True)
class Run:
    """A run folder. Its properties are paths; its methods read and update the manifest.

    aside: within a change of the run (see `changing`), the folder where new files wait until the change counts.
    """

    root: Path
    aside: Path | None = None

    @property
    def settings_file(self) -> Path:
        return self.root / SETTINGS

    @property
    def manifest_file(self) -> Path:
        return self.root / MANIFEST

    @property
    def data_file(self) -> Path:
        return self.root / "data.json"

    @property
    def network(self) -> Path:
        """Folder of the trained classification network: network.safetensors, network.json, history.jsonl, and with
        maps = oaa accumulated.npy and accumulated.json."""
        return self.root / "network"

    @property
    def segmenter(self) -> Path:
        """Folder of the trained segmentation network: network.safetensors, network.json, history.jsonl."""
        return self.root / "segmenter"

    @property
    def features(self) -> Path:
        """Folder of the cached features of the images: see features/cache.py."""
        return self.root / "features"

    @property
    def maps(self) -> Path:
        return self.root / "maps"

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    @property
    def decided_masks(self) -> Path:
        """Masks in which every pixel has a class, unsure pixels too."""
        return self.root / "masks_without_void"

    def round(self, number: int) -> "Run":
        """Return the folder of a round of self-training (from 1), whose maps and masks the next round learns from.

        It has a segmenter, maps and masks like a run, and settings.toml says how to read its maps. It cannot be
        continued as a run of its own.
        """
        below = Path(ROUNDS) / f"round_{number}"
        return Run(self.root / below, self.aside / below if self.aside else None)

    def final(self) -> "Run":
        """Return the folder of the run's final masks: the last round of self-training, or the run itself if there is
        none, or if the masks were taught after it."""
        rounds = self.settings().segment.rounds
        return self.round(rounds - 1) if rounds > 1 and self.done("segment") and not self.is_outdated() else self

    def is_outdated(self) -> bool:
        """Return whether the segmentation network learned from masks that were taught otherwise than those of now."""
        stages = self.manifest().stages
        return "masks" in stages and "segment" in stages and stages["masks"].taught != stages["segment"].taught

    @property
    def labels(self) -> Path:
        """Folder of the masks of another tool that the segmentation network learns from (segment.labels)."""
        return self.root / "labels"

    @property
    def full_supervision(self) -> "Run":
        """The folder of the same network trained on true masks.

        It has a segmenter, masks and predictions like a run, scores in evaluation.json, and the settings that apply to
        it in settings.toml. It is not a run of its own.
        """
        return Run(self.root / "full_supervision")

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    @property
    def evaluation_file(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def report_file(self) -> Path:
        return self.root / "report.html"

    @property
    def review(self) -> Path:
        """Folder of the decisions about the masks; rounds of self-training share that of their run."""
        home = self.root.parent.parent if self.root.parent.name == ROUNDS else self.root
        return home / "review"

    @property
    def decisions_file(self) -> Path:
        return self.review / "decisions.sqlite"

    @property
    def taught_file(self) -> Path:
        """The answers that taught the memory bank: see run/taught.py."""
        return self.review / "taught.sqlite"

    @property
    def quality_file(self) -> Path:
        """The estimated quality of the masks, if it was computed: see evaluate/quality.py."""
        return self.root / "quality.jsonl"

    @property
    def atlas_file(self) -> Path:
        return self.root / "atlas.html"

    @property
    def calibration_file(self) -> Path:
        return self.root / "calibration.json"

    def written(self, path: Path) -> Path:
        """Return where a file of the run is to be written: aside, within a change of the run."""
        return self.aside / path.relative_to(self.root) if self.aside else path

    def newest(self, path: Path) -> Path:
        """Return where the newest content of a file of the run is: aside, if a change of the run has written it."""
        return new if self.aside and (new := self.written(path)).exists() else path

    def name_of(self, path: Path) -> str:
        """Return a file's path relative to the run folder, as the manifest has it."""
        return path.relative_to(self.root).as_posix()

    def settings(self) -> Settings:
        """Return the run's resolved settings.

        Raises:
            RunError: when the folder is not a run folder.
            ValueError: when settings.toml is damaged.
        """
        self._require()
        return Settings.from_toml(self.newest(self.settings_file))

    def data_root(self) -> Path:
        """Return the data folder that the run was made from."""
        return Path(self.manifest().data)

    def manifest(self) -> Manifest:
        """Return the manifest.

        Raises:
            RunError: when the folder is not a run folder, or its manifest is damaged.
        """
        self._require()
        return read_manifest(self.manifest_file)

    def store(self, manifest: Manifest) -> None:
        """Write the manifest."""
        write_manifest(self.manifest_file, manifest)

    def done(self, stage: Stage) -> bool:
        """Tell whether a stage has finished."""
        return stage in self.manifest().stages

    def require(self, stage: Stage) -> None:
        """Raise RunError unless `stage` has finished."""
        if not self.done(stage):
            raise RunError(f"{self.root}: stage {stage} has not finished; run `tagseg {stage} {self.root}` first")

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[dict[str, Any]]:
        """Run a stage's body; when it succeeds, record seconds, peak memory and output checksums in the manifest.

        Yields a dict for other fields of the stage's note, such as `images` (see `StageNote`). Seconds are those of the
        attempt that succeeded. `peak_mb` is of this process only; the stage itself records that of its workers.
        """
        started = time.monotonic()
        reset_peak_memory()
        figures: dict[str, Any] = {}
        yield figures
        seconds, peak = time.monotonic() - started, peak_memory_mb()
        files = self._checksums(self.outputs(name))
        note = StageNote(seconds=round(seconds, 1), peak_mb=round(peak), files=files, **figures)
        self.store(self.manifest().with_stage(name, note))

    def outputs(self, stage: Stage) -> tuple[str, ...]:
        """Return the files and folders that a stage writes; data.json belongs to the run's first stage."""
        first = needed_stages(self.settings())[0]
        return (self.data_file.name, *OUTPUTS[stage]) if stage == first != "train" else OUTPUTS[stage]

    def note(self, name: Other, known: Mapping[Path, str] = MappingProxyType({})) -> None:
        """Record the checksums of the files that a command other than the stages wrote (see OTHERS).

        `known` are checksums that need not be computed again.
        """
        self.store(self.manifest().with_other(name, OtherNote(self._checksums(OTHERS[name], known))))

    @contextlib.contextmanager
    def changing(self, by: str = "") -> Iterator[tuple["Run", RunDraft]]:
        """Yield this run, whose stages write aside, and a draft of its change; all of it counts at once if the block
        succeeds, and nothing if it fails. The caller holds the run's lock.

        Raises:
            RunError: when the folder is not a run folder.
            WriteError: when the folder cannot be written to.
        """
        self._require()
        with changing_run(self.root, by) as draft:
            yield Run(self.root, draft.aside), draft

    def forget(self, *names: Other) -> None:
        """Delete the files of commands other than the stages, and their entries in the manifest."""
        with self.changing() as (_, draft):
            draft.forget(*names)

    def require_unchanged(self, stage: Stage, *files: Path) -> None:
        """Check files of a finished stage against their checksums in the manifest; files without a checksum pass.

        Raises:
            RunError: naming a file that has changed.
        """
        note = self.manifest().stages.get(stage, StageNote())
        for file in files:
            name = file.relative_to(self.root).as_posix()
            if name in note.files and not (is_file(file) and checksum(file) == note.files[name]):
                raise RunError(
                    f"{file}: differs from its checksum in {self.manifest_file.name}: it was damaged or changed after "
                    f"stage {stage} wrote it. `tagseg {stage} {self.root} --force` makes it again"
                )

    def require_inside(self, stage: Stage) -> None:
        """Check that a stage writes inside the run folder: a link in it could lead elsewhere.

        Raises:
            RunError: naming the link.
        """
        root = self.root.resolve()
        for output in OUTPUTS[stage]:
            top = self.root / output
            for link in (top, *(Path(at, name) for at, names, _ in os.walk(top) for name in names)):
                if link.is_symlink() and not link.resolve().is_relative_to(root):
                    raise RunError(
                        f"{link}: stage {stage} writes here, but this is a link to {link.resolve()}, outside the run "
                        "folder; remove it (to keep a run elsewhere, move its whole folder)"
                    )

    def remove_leftovers(self, stage: Stage) -> None:
        """Delete the temporary files of killed processes where a stage writes; no process may be writing there.

        Raises:
            RunError: when the stage would write outside the run folder (see `require_inside`).
        """
        self.require_inside(stage)
        for leftover in self.root.glob(f"{TEMPORARY}*"):
            if not leftover.is_dir():
                leftover.unlink(missing_ok=True)
        for output in OUTPUTS[stage]:
            remove_temporary(self.root / output)

    def discard(self, first: Stage) -> None:
        """Delete the outputs of `first` and of all later stages, and files of other commands that depend on them."""
        with self.changing() as (_, draft):
            draft.discard(first)

    def _checksums(self, outputs: tuple[str, ...], known: Mapping[Path, str] = MappingProxyType({})) -> dict[str, str]:
        paths = [path for output in outputs for path in files_in(self.root / output)]
        return {path.relative_to(self.root).as_posix(): known.get(path) or checksum(path) for path in paths}

    def _require(self) -> None:
        for file in (self.manifest_file, self.settings_file):
            if not file.exists():
                raise RunError(
                    f"{self.root}: not a run folder (no {file.name}); make one with `tagseg fit DATA --out RUN`"
                )


def network_folder(path: Path) -> Path:
    """Return the folder of the segmentation network in a run folder, or the folder itself if it holds one.

    Raises:
        RunError: if there is no trained segmenter.
    """
    run = Run(path)
    if run.manifest_file.exists():
        run.require("segment")
        return run.segmenter
    if not any((path / name).is_file() for name in (TRAINED_WEIGHTS, EXPORTED_WEIGHTS)):
        raise RunError(
            f"{path}: not a run folder (no {run.manifest_file.name}) and no {TRAINED_WEIGHTS} in it; expected a "
            "run with a trained segmenter, its segmenter folder, or a folder from `tagseg export-model RUN --out DIR`"
        )
    return path
