"""The manifest of a run: which stages have finished, how long they took, and the checksums of the files they left."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from tagseg.run.stages import Other, Stage
from tagseg.system.records import Amount, Count, Record, read_record, write_record


class StageNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """The manifest's note about a finished stage.

    seconds: duration of the attempt that succeeded. peak_mb: peak memory of the main process, in MB. images: number of
    images that the attempt processed. images_per_s: images per second. worker_peak_mb: peak memory of the worker
    processes, in MB. maps_from, maps_hold: the settings of these names, if another method made the maps. reviewed:
    digests of the decisions that the stage took into account, by sample id. taught: the digest of the answers that the
    memory bank had learned from (see `taught_digest`), of train, localise, masks and segment. truth: the digest of the
    true masks that were scored (see `truth_digest`), of evaluate; empty in runs of earlier versions. files: SHA-256 of
    every output, by its path in the run folder.
    """

    seconds: Amount | None = None
    peak_mb: Amount | None = None
    images: Count | None = None
    images_per_s: Amount | None = None
    worker_peak_mb: Amount | None = None
    maps_from: str | None = None
    maps_hold: str | None = None
    reviewed: dict[str, str] = {}
    taught: str = ""
    truth: str = ""
    files: dict[str, str] = {}


class OtherNote(msgspec.Struct, frozen=True):
    """The manifest's note about a command other than the stages: SHA-256 of every file that it wrote."""

    files: dict[str, str]


class Manifest(Record, frozen=True, omit_defaults=True, kw_only=True):
    """manifest.json of a run.

    tagseg: the version that began the run; empty for a round of self-training. data: the data folder. settings: SHA-256
    of settings.toml. stages: the finished ones. again: those of them that are to be repeated, because something that
    they show is newer. others: the other commands (see `tagseg.run.stages.OTHERS`).
    calibration_images: ids of all images whose true masks a calibration has seen. round: the number of a round of
    self-training. foreign: of a stage that reads another tool's maps or masks, the digest of these when it had (see
    `foreign_digest`).
    """

    tagseg: str = ""
    data: str
    settings: str | None = None
    stages: dict[Stage, StageNote]
    again: tuple[Stage, ...] = ()
    others: dict[Other, OtherNote] = msgspec.field(default_factory=dict)
    calibration_images: tuple[str, ...] = ()
    round: Count | None = None
    foreign: dict[Stage, str] = msgspec.field(default_factory=dict)

    def with_stage(self, name: Stage, note: StageNote) -> "Manifest":
        """Return the manifest with another finished stage."""
        again = tuple(one for one in self.again if one != name)
        return msgspec.structs.replace(self, stages={**self.stages, name: note}, again=again)

    def without_stages(self, names: Iterable[Stage]) -> "Manifest":
        """Return the manifest without some stages."""
        gone = set(names)
        stages = {key: note for key, note in self.stages.items() if key not in gone}
        foreign = {key: digest for key, digest in self.foreign.items() if key not in gone}
        again = tuple(one for one in self.again if one not in gone)
        return msgspec.structs.replace(self, stages=stages, foreign=foreign, again=again)

    def with_other(self, name: Other, note: OtherNote) -> "Manifest":
        """Return the manifest with the note of a command other than the stages."""
        return msgspec.structs.replace(self, others={**self.others, name: note})

    def without_others(self, names: Iterable[Other]) -> "Manifest":
        """Return the manifest without the notes of some commands other than the stages."""
        gone = set(names)
        return msgspec.structs.replace(self, others={key: note for key, note in self.others.items() if key not in gone})

    def checksums(self) -> dict[str, dict[str, str]]:
        """Return the checksums of the files of every finished stage and other command, by its name."""
        stages: dict[str, dict[str, str]] = {name: note.files for name, note in self.stages.items()}
        return stages | {name: note.files for name, note in self.others.items()}


def read_manifest(file: Path) -> Manifest:
    """Return a run's manifest.

    Raises:
        RunError: when the file is missing or damaged.
    """
    return read_record(file, Manifest, "start again with another --out")


def write_manifest(file: Path, manifest: Manifest) -> None:
    """Write a run's manifest.

    Raises:
        WriteError: when the disk is full or the folder cannot be written to.
    """
    write_record(file, manifest)
