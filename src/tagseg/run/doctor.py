"""Check every file of a run folder against its checksum in the manifest, and say how to repair the damage."""

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from tagseg.errors import RunError
from tagseg.run.decisions import check_database
from tagseg.run.folder import LOCK, Run
from tagseg.run.history import read_history
from tagseg.run.manifest import Manifest, read_manifest
from tagseg.run.stages import OTHERS, OUTPUTS, STAGES, needed_stages
from tagseg.run.taught import check_taught
from tagseg.system.changes import ASIDE, CHANGE, pending
from tagseg.system.files import TEMPORARY, checksum
from tagseg.system.progress import Track, map_ahead, silent
from tagseg.system.records import record_line

Kind = Literal["missing", "changed", "left over", "unreadable"]

CHECK_THREADS = 4
"""Threads that read files: on a network disk, waiting takes longer than computing."""

SHOWN = 20
"""At most this many damaged files of a part are listed."""

_REPEAT = {
    "calibration": "tagseg calibrate {run} --masks DIR",
    "atlas": "tagseg atlas {run} --force",
    "full_supervision": "tagseg segment {run} --labels truth --force",
    "quality": "delete it, then tagseg worst {run}",
    "ablation": "tagseg ablate DATA --out DIR, as before",
    "bench": "delete it, then tagseg bench, as before",
    "features": "run the command that computed them as before; what is missing or damaged is computed again",
}
"""How to repeat the commands other than the stages."""


@dataclass(frozen=True)
class Damage:
    """A file that is not as `part` (a stage, or another name in the manifest) wrote it."""

    file: str
    kind: Kind
    part: str


@dataclass(frozen=True)
class Checkup:
    """The state of a run folder.

    finished: the number of files of every finished part. unfinished: the number of files of every part that has begun
    and not finished. temporary: files that a killed process was writing; the next command deletes them. advice: what to
    do, as lines of text.
    """

    run: Path
    finished: Mapping[str, int]
    unfinished: Mapping[str, int]
    damage: tuple[Damage, ...]
    temporary: tuple[str, ...]
    advice: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the findings as lines of text."""
        found = []
        for part in dict.fromkeys([*self.finished, *self.unfinished, *(one.part for one in self.damage)]):
            mine = [one for one in self.damage if one.part == part]
            if part in self.unfinished:
                found.append(f"{part}: not finished, {_files(self.unfinished[part])} so far")
            else:
                found.append(f"{part}: {_files(self.finished.get(part, 0))}, {len(mine) or 'none'} damaged")
            found += [f"  {one.kind}: {one.file}" for one in mine[:SHOWN]]
            found += [f"  and {len(mine) - SHOWN} more"] if len(mine) > SHOWN else []
        if self.temporary:
            found.append(f"{len(self.temporary)} temporary files of a killed process; the next command deletes them")
        return [*found, *self.advice]


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def examine(root: str | Path, track: Track = silent) -> Checkup:
    """Check every file of a run folder against its checksum, without changing anything.

    Files of unfinished stages have no checksum yet and are only counted. Files that tagseg never writes are ignored,
    unless they are in a folder of a finished stage.

    Raises:
        RunError: when the folder is not a run folder.
    """
    run = Run(Path(root))
    if not run.manifest_file.exists():
        raise RunError(f"{run.root}: not a run folder (no {run.manifest_file.name})")
    change = None
    try:
        # A change of a killed command that counts is checked as it will be: the next command puts it in place.
        change = pending(run.root)
        run = Run(run.root, run.root / ASIDE if change else None)
        manifest = read_manifest(run.newest(run.manifest_file))
    except RunError:
        lost = Damage(run.manifest_file.name, "unreadable", "the run itself")
        lost_advice = f"Nothing can be checked without {run.manifest_file}: restore it from a copy, or start a new run."
        return Checkup(run.root, {}, {}, (lost,), (), (lost_advice,))
    # Stages that are to run again may have begun to.
    noted = {part: files for part, files in manifest.checksums().items() if part not in manifest.again}
    data = manifest.data
    damage = [*_check_settings(run, manifest), *_check_files(run, noted, track), *_check_decisions(run)]
    known = {name for files in noted.values() for name in files} | {CHANGE}
    known |= {name for gone in change.gone for name in _all_files(run.root, gone)} if change else set()
    unfinished: dict[str, int] = {}
    temporary = []
    for name in sorted(_all_files(run.root) - known):
        part = _part(name)
        if name.startswith(f"{ASIDE}/") and change:
            continue
        if name.startswith(f"{ASIDE}/") or os.path.basename(name).startswith(TEMPORARY):
            temporary.append(name)
        elif part in noted:
            damage.append(Damage(name, "left over", part))
        elif part and name != run.data_file.name:  # made by whichever stage runs first, in little time
            unfinished[part] = unfinished.get(part, 0) + 1
    finished = {part: len(files) for part, files in noted.items()}
    advice = tuple(_advice(run, data, damage, unfinished, finished, bool(manifest.again)))
    return Checkup(run.root, finished, unfinished, tuple(damage), tuple(temporary), advice)


def _check_settings(run: Run, manifest: Manifest) -> list[Damage]:
    try:
        run.settings()
    except RunError:
        return [Damage(run.settings_file.name, "missing", "the run itself")]
    except ValueError:
        return [Damage(run.settings_file.name, "unreadable", "the run itself")]
    # Runs of older versions have no checksum of their settings.
    changed = manifest.settings not in (None, checksum(run.newest(run.settings_file)))
    return [Damage(run.settings_file.name, "changed", "the run itself")] if changed else []


def _check_files(run: Run, noted: Mapping[str, Mapping[str, str]], track: Track) -> list[Damage]:
    files = [(part, name, digest) for part, found in noted.items() for name, digest in found.items()]

    def check(file: tuple[str, str, str]) -> Damage | None:
        part, name, digest = file
        path, root = run.newest(run.root / name), run.root
        try:
            # An untrusted manifest may name files outside of the run folder: they are not read.
            if ".." in Path(name).parts or not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
                return Damage(name, "missing", part)
            return None if checksum(path) == digest else Damage(name, "changed", part)
        except (OSError, ValueError):
            return Damage(name, "unreadable", part)

    outcomes = track(map_ahead(files, check, CHECK_THREADS), "check files", len(files))
    return [damage for damage in outcomes if damage is not None]


def _check_decisions(run: Run) -> list[Damage]:
    # It has no checksum, because it changes with every decision.
    found = []
    for check, file in ((check_database, run.decisions_file), (check_taught, run.taught_file)):
        try:
            check(run)
        except RunError:
            found.append(Damage(file.relative_to(run.root).as_posix(), "unreadable", "review"))
    return found


def _all_files(root: Path, below: str = "") -> set[str]:
    """Return the paths of all files in a folder, or of those in one of its folders `below`, relative to it."""
    top = root / below
    if not top.is_dir():
        return {below} if below else set()
    return {Path(folder, name).relative_to(root).as_posix() for folder, _, names in os.walk(top) for name in names}


def _part(name: str) -> str:
    """Return the stage or other part that writes a file; empty for a file that tagseg never writes."""
    first = name.split("/")[0]
    return next((part for part, outputs in [*OUTPUTS.items(), *OTHERS.items()] if first in outputs), "")


def _advice(
    run: Run,
    data: str,
    damage: list[Damage],
    unfinished: Mapping[str, int],
    finished: Mapping[str, int],
    outdated: bool,
) -> list[str]:
    place, again = shlex.quote(str(run.root)), f"tagseg fit {shlex.quote(data)} --out {shlex.quote(str(run.root))}"
    parts = {one.part for one in damage if one.kind != "left over"}
    lines = [f"Delete {shlex.quote(str(run.root / one.file))}" for one in damage if one.kind == "left over"][:SHOWN]
    if "the run itself" in parts:
        lines.append(
            f"{run.settings_file}: the finished stages were made with settings other than those in this file. If a "
            "command was interrupted while it changed them, run it again; otherwise restore the file, or start a new "
            "run."
        )
    if "review" in parts:
        lines += [
            f"{run.root / one.file}: restore it from a copy, or delete it and lose what a person said."
            for one in damage
            if one.part == "review"
        ]
    stages = [stage for stage in STAGES if stage in parts]
    if stages:
        lines.append(f"Repeat {stages[0]} and all later stages: tagseg {stages[0]} {place} --force, then {again}")
    lines += [f"Repeat {name}: {command.format(run=place)}" for name, command in _REPEAT.items() if name in parts]
    if not damage and (unfinished or outdated or not set(needed_stages(run.settings())) <= finished.keys()):
        lines.append(f"Nothing is damaged. Continue with {again}")
    elif not damage:
        lines.append("Nothing is damaged.")
    return lines


def result_checksums(run: Run) -> dict[str, str]:
    """Return the checksum of every result of a run by its path, independent of time and memory.

    Two runs with the same results have the same checksums. Left out are the manifest (it contains checksums, seconds
    and memory), the seconds in history.jsonl, when a file of cached features was written, and time, memory and the path
    of the run in report.html.
    """
    found = {}
    for name in sorted(_all_files(run.root)):
        path = run.root / name
        if (
            path.name in (run.manifest_file.name, LOCK, CHANGE)
            or name.startswith(ASIDE)
            or path.name.startswith(TEMPORARY)
        ):
            continue
        timeless = _shard_without_time if _is_shard(name) else _TIMELESS.get(path.name)
        text = timeless(path) if timeless else ""
        found[name] = hashlib.sha256(text.encode()).hexdigest() if timeless else checksum(path)
    return found


def _is_shard(name: str) -> bool:
    """Tell whether a path in a run folder is that of a list of cached features."""
    return re.fullmatch(r"features/\d+\.json", name) is not None


def _shard_without_time(path: Path) -> str:
    return re.sub(r'"changed": \d+', "", path.read_text(encoding="utf-8"))


def _history_without_seconds(path: Path) -> str:
    return "".join(record_line(msgspec.structs.replace(row, seconds=None)) for row in read_history(path))


def _report_without_times(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    text = re.sub(r'<h3>Time</h3>\s*<p class="value">[^<]*', "", text)
    text = re.sub(r'(<td>[^<]*</td>)<td class="number">[^<]*</td><td class="number">[^<]*</td></tr>', r"\1", text)
    return re.sub(r"<code>tagseg [^<]*", "", text)


_TIMELESS: dict[str, Callable[[Path], str]] = {
    "history.jsonl": _history_without_seconds,
    "report.html": _report_without_times,
}
"""Functions that remove times from the text of a file, by the name of the file."""
