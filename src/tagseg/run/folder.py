"""The run folder: where each stage reads and writes, and what is finished."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from tagseg.errors import RunError
from tagseg.settings.settings import Settings
from tagseg.system.files import TEMPORARY, checksum, files_in, remove_temporary, write_atomically
from tagseg.system.process import peak_memory_mb, reset_peak_memory
from tagseg.system.untrusted import check_shape, is_file, read_json

Stage = Literal["train", "localise", "masks", "segment", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)

_ROUNDS = "self_training"

OUTPUTS: dict[Stage, tuple[str, ...]] = {
    "train": ("network", "data.json"),
    "localise": ("maps",),
    "masks": ("masks", "masks_without_void"),
    "segment": ("segmenter", _ROUNDS, "labels"),
    "evaluate": ("predictions", "evaluation.json", "evaluation.md"),
    "report": ("report.html",),
}
"""What each stage leaves in the run folder."""

OTHERS: dict[str, tuple[str, ...]] = {
    "calibration": ("calibration.json", "calibration.md"),
    "atlas": ("atlas.html",),
    "full_supervision": ("full_supervision",),
    "quality": ("quality.jsonl",),
    "ablation": ("ablation_score.json",),
    "bench": ("bench",),
}
"""What commands beyond the stages leave in the run folder."""


LOCK = ".lock"
"""The file by which processes keep one another out of a run folder (see tagseg.run.lock)."""

_MANIFEST = {"data": str, "stages": dict, "tagseg?": str, "calibration_images?": [str]}
_STAGE = {"seconds?": float, "peak_mb?": float, "files?": dict}


@dataclass(frozen=True)
class Run:
    """A run folder. Paths are properties; `done`, `stage` and `discard` keep the manifest."""

    root: Path

    @property
    def settings_file(self) -> Path:
        return self.root / "settings.toml"

    @property
    def manifest_file(self) -> Path:
        return self.root / "manifest.json"

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
    def maps(self) -> Path:
        return self.root / "maps"

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    @property
    def decided_masks(self) -> Path:
        """Masks where every pixel is decided, unsure ones too."""
        return self.root / "masks_without_void"

    def round(self, number: int) -> "Run":
        """Return the folder of a round of self-training (1 is the first): what the next round's masks were made from.

        It has a segmenter, maps and masks like a run, and settings.toml says how its maps are read; it is no run that
        could be continued by itself.
        """
        return Run(self.root / _ROUNDS / f"round_{number}")

    def final(self) -> "Run":
        """Return the folder of the masks that are the run's last word: the last round of self-training, or itself."""
        rounds = self.settings().segment.rounds
        return self.round(rounds - 1) if rounds > 1 and self.done("segment") else self

    @property
    def labels(self) -> Path:
        """Folder of the masks of another tool that the segmentation network learns from (segment.labels)."""
        return self.root / "labels"

    @property
    def full_supervision(self) -> "Run":
        """The folder of the same network trained on true masks: segmenter, masks and predictions as in a run, scores in
        evaluation.json, and settings.toml says what of the settings counts for it; it is no run by itself."""
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
        """Folder of what a person decided about the masks; rounds of self-training share that of their run."""
        home = self.root.parent.parent if self.root.parent.name == _ROUNDS else self.root
        return home / "review"

    @property
    def decisions_file(self) -> Path:
        return self.review / "decisions.sqlite"

    @property
    def quality_file(self) -> Path:
        """How far the masks are to be trusted, as far as that was asked: see review/scores.py."""
        return self.root / "quality.jsonl"

    @property
    def atlas_file(self) -> Path:
        return self.root / "atlas.html"

    @property
    def calibration_file(self) -> Path:
        return self.root / "calibration.json"

    def settings(self) -> Settings:
        """Return the run's resolved settings.

        Raises:
            RunError: when the folder is no run folder.
        """
        self._require()
        return Settings.from_toml(self.settings_file)

    def data_root(self) -> Path:
        """Return the data folder the run was made from."""
        self._require()
        return Path(self.manifest()["data"])

    def manifest(self) -> dict[str, Any]:
        """Return the manifest: tagseg's version, the data folder; per finished stage seconds, peak memory, files."""
        self._require()
        try:
            manifest: dict[str, Any] = read_json(self.manifest_file)
            check_shape(manifest, _MANIFEST)
            for name, noted in manifest["stages"].items():
                check_shape(noted, _STAGE, f"stages.{name}")
        except (OSError, ValueError) as error:
            raise RunError(f"{self.manifest_file}: damaged ({error}); start again with another --out") from error
        return manifest

    def done(self, stage: Stage) -> bool:
        """Tell whether a stage has finished."""
        return stage in self.manifest()["stages"]

    def require(self, stage: Stage) -> None:
        """Raise RunError unless `stage` has finished."""
        if not self.done(stage):
            raise RunError(f"{self.root}: stage {stage} has not finished; run `tagseg {stage} {self.root}` first")

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[dict[str, Any]]:
        """Run a stage's body; when it succeeds, note its seconds, peak memory and output checksums in the manifest.

        Yields a dict for figures of the stage's own (images a second, ...), noted too. Seconds are those of the attempt
        that succeeded. `peak_mb` is this process's alone; what worker processes took is up to the stage to note.
        """
        started = time.monotonic()
        reset_peak_memory()
        figures: dict[str, Any] = {}
        yield figures
        seconds, peak = time.monotonic() - started, peak_memory_mb()
        manifest = self.manifest()
        manifest["stages"][name] = {
            "seconds": round(seconds, 1),
            "peak_mb": round(peak),
            **figures,
            "files": self._checksums(self.outputs(name)),
        }
        self.store(manifest)

    def outputs(self, stage: Stage) -> tuple[str, ...]:
        """Return what a stage leaves in the run folder; the list of the images belongs to the first one there is."""
        first = needed_stages(self.settings())[0]
        return (self.data_file.name, *OUTPUTS[stage]) if stage == first != "train" else OUTPUTS[stage]

    def note(self, name: str) -> None:
        """Note in the manifest the checksums of what a command beyond the stages has left (see OTHERS)."""
        manifest = self.manifest()
        manifest.setdefault("others", {})[name] = {"files": self._checksums(OTHERS[name])}
        self.store(manifest)

    def forget(self, *names: str) -> None:
        """Delete what commands beyond the stages have left, and their note in the manifest."""
        manifest = self.manifest()
        for name in names:
            manifest.get("others", {}).pop(name, None)
        self.store(manifest)
        for name in names:
            self._delete(OTHERS[name])

    def store_settings(self, settings: Settings) -> None:
        """Write settings.toml, and its checksum into the manifest; nothing where it says so already."""
        text = settings.to_toml()
        manifest, digest = self.manifest(), hashlib.sha256(text.encode()).hexdigest()
        if manifest.get("settings") == digest and self.settings_file.read_bytes() == text.encode():
            return
        write_atomically(self.settings_file, text)
        self.store(manifest | {"settings": digest})

    def _checksums(self, outputs: tuple[str, ...]) -> dict[str, str]:
        paths = [path for output in outputs for path in files_in(self.root / output)]
        return {path.relative_to(self.root).as_posix(): checksum(path) for path in paths}

    def store(self, manifest: dict[str, Any]) -> None:
        """Write the manifest."""
        write_atomically(self.manifest_file, json.dumps(manifest, indent=1, ensure_ascii=False))

    def amend(self, stage: Stage, files: Iterable[Path], figures: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Note new checksums of some outputs of a finished stage, and figures, in the manifest."""
        manifest = self.manifest()
        manifest["stages"][stage] |= figures
        manifest["stages"][stage]["files"] |= {path.relative_to(self.root).as_posix(): checksum(path) for path in files}
        self.store(manifest)

    def _delete(self, outputs: tuple[str, ...]) -> None:
        for path in (self.root / output for output in outputs):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def require_unchanged(self, stage: Stage, *files: Path) -> None:
        """Check files that a finished stage left against their checksums in the manifest; what it does not name passes.

        Raises:
            RunError: naming a file that is not the one the stage left.
        """
        noted = self.manifest()["stages"].get(stage, {}).get("files", {})
        for file in files:
            name = file.relative_to(self.root).as_posix()
            if name in noted and not (is_file(file) and checksum(file) == noted[name]):
                raise RunError(
                    f"{file}: is not the file that stage {stage} left, by its checksum in {self.manifest_file.name}: "
                    f"it was damaged or changed. `tagseg {stage} {self.root} --force` makes it anew"
                )

    def require_inside(self, stage: Stage) -> None:
        """Check that a stage's outputs lie in the run folder: a folder in it that is a link would send them elsewhere.

        Raises:
            RunError: naming the link.
        """
        root = self.root.resolve()
        for output in OUTPUTS[stage]:
            top = self.root / output
            for link in (top, *(Path(at, name) for at, names, _ in os.walk(top) for name in names)):
                if link.is_symlink() and not link.resolve().is_relative_to(root):
                    raise RunError(
                        f"{link}: is a link to {link.resolve()}, out of the run folder, where stage {stage} writes; "
                        "remove it (the whole run folder may lie elsewhere)"
                    )

    def remove_leftovers(self, stage: Stage) -> None:
        """Delete the temporary files that a killed run left where a stage writes; none may be at work there.

        Raises:
            RunError: when that is not in the run folder (see `require_inside`).
        """
        self.require_inside(stage)
        for leftover in self.root.glob(f"{TEMPORARY}*"):
            leftover.unlink(missing_ok=True)
        for output in OUTPUTS[stage]:
            remove_temporary(self.root / output)

    def discard(self, first: Stage) -> None:
        """Delete the outputs of `first` and of every later stage; calibration and atlas go with their network."""
        manifest, stages = self.manifest(), STAGES[STAGES.index(first) :]
        for stage in stages:
            manifest["stages"].pop(stage, None)
        self.store(manifest)
        for stage in stages:
            self._delete(OUTPUTS[stage])
        if STAGES.index(first) <= STAGES.index("segment"):
            self.forget("quality", "bench")
        if first == "train":
            self.forget("calibration", "atlas")

    def _require(self) -> None:
        for file in (self.manifest_file, self.settings_file):
            if not file.exists():
                raise RunError(
                    f"{self.root}: not a run folder (no {file.name}); make one with `tagseg fit DATA --out RUN`"
                )


def needed_stages(settings: Settings) -> tuple[Stage, ...]:
    """Return the stages of a run in order: where the segmentation network learns from masks of another tool, there are
    no maps and no pseudo-masks to be made; where another method has made the maps, there is no network to be trained
    for them."""
    if settings.segment.labels:
        return STAGES[STAGES.index("segment") :]
    return STAGES[STAGES.index("localise") :] if settings.localise.maps_from else STAGES
