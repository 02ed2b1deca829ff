"""A change of a run folder that is not made yet: new files, deletions and a manifest, which count together."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from tagseg.run.manifest import Manifest, OtherNote, read_manifest
from tagseg.run.stages import OTHERS, OUTPUTS, STAGES, Other, Stage
from tagseg.system.changes import Draft, changing
from tagseg.system.files import checksum, files_in
from tagseg.system.records import Record, record_text

MANIFEST = "manifest.json"
SETTINGS = "settings.toml"


class RunDraft:
    """New files, deletions and a new manifest of a run folder. Names are paths relative to the folder."""

    def __init__(self, draft: Draft, manifest: Manifest) -> None:
        self.draft = draft
        self.manifest = manifest

    @property
    def aside(self) -> Path:
        """The folder where new files wait, under their own names."""
        return self.draft.aside

    def write(self, name: str, content: str | bytes | Record) -> None:
        """Write the new content of a file; of a record, its JSON.

        Raises:
            WriteError: when it cannot be written.
        """
        self.draft.write(name, record_text(content) if isinstance(content, Record) else content)

    def set_settings(self, text: str) -> None:
        """Replace settings.toml."""
        self.write(SETTINGS, text)
        self.manifest = msgspec.structs.replace(self.manifest, settings=hashlib.sha256(text.encode()).hexdigest())

    def discard(self, first: Stage) -> None:
        """Delete the outputs of `first` and of all later stages, and files of other commands that depend on them."""
        stages = STAGES[STAGES.index(first) :]
        self.manifest = self.manifest.without_stages(stages)
        self._delete(output for stage in stages for output in OUTPUTS[stage])
        if STAGES.index(first) <= STAGES.index("segment"):
            self.forget("quality", "bench")
        if first == "train":
            self.forget("calibration", "atlas")

    def forget(self, *names: Other) -> None:
        """Delete the files of commands other than the stages."""
        self.manifest = self.manifest.without_others(names)
        self._delete(output for name in names for output in OTHERS[name])

    def note(self, name: Other) -> None:
        """Record the checksums of the files that a command other than the stages wrote (see OTHERS)."""
        tops = (self.draft.folder, self.aside)
        paths = [(top, path) for top in tops for output in OTHERS[name] for path in files_in(top / output)]
        found = {path.relative_to(top).as_posix() for top, path in paths}
        self.manifest = self.manifest.with_other(name, OtherNote(self._checksums(sorted(found))))

    def amend(self, stage: Stage, names: Iterable[str], figures: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Record new checksums of some outputs of a finished stage, and new values of its note."""
        old = self.manifest.stages[stage]
        note = msgspec.structs.replace(old, files={**old.files, **self._checksums(names)}, **figures)
        self.manifest = self.manifest.with_stage(stage, note)

    def _checksums(self, names: Iterable[str]) -> dict[str, str]:
        return {name: checksum(self.draft.newest(name)) for name in names}

    def _delete(self, names: Iterable[str]) -> None:
        self.draft.gone += [name for name in names if (self.draft.folder / name).exists()]


@contextlib.contextmanager
def changing_run(root: Path, by: str = "") -> Iterator[RunDraft]:
    """Yield a draft of a run folder whose parts count together if the block succeeds, and not at all if it fails; the
    caller holds the run's lock.

    Raises:
        RunError: when the manifest is missing or damaged.
        WriteError: when the folder cannot be written to.
    """
    with changing(root, by) as draft:
        before = read_manifest(root / MANIFEST)
        new = RunDraft(draft, before)
        yield new
        if new.manifest != before:
            new.write(MANIFEST, new.manifest)
