"""Kill every command at chosen operations on files, run it again, and compare with a run that nobody disturbed.

    python -m benchmarks.reliability.faults                      every command, 20 kills each: about an hour
    python -m benchmarks.reliability.faults --only export atlas  those; the table has all that were measured so far
    python -m benchmarks.reliability.faults --kills 40

A kill is a SIGKILL before the n-th operation: a file opened for writing, flushed to the disk, renamed or deleted, a
folder made or deleted, a statement of a database. The state after an operation is that before the next. Where a command
has fewer operations than kills are wanted, the rest are between any two steps of Python that it audits. Then the same
command runs again (and the commands that follow it), `doctor` examines every run folder, and all files are compared:
bytes, but for times (see `state`). Every command of the command line has a scenario here, or this program ends.
This benchmark can be interrupted and continued.
"""

import argparse
import json
import os
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.harness import RUNS, record
from benchmarks.reliability.scenarios import SCENARIOS, WORK, Call, Scenario, make_base, uncovered

from tagseg.cli.main import app, main
from tagseg.run.doctor import examine, result_checksums
from tagseg.run.folder import LOCK, Run
from tagseg.system.changes import ASIDE
from tagseg.system.records import record_kinds

FOLDER = RUNS / "faults"

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_CHANGING = {"os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.mkdir": 0, "os.symlink": 1, "os.truncate": 0}
"""Audited operations that change files, and which of their arguments is the path."""


class Operations:
    """Counts a process's operations on files below a folder, and kills the process before one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = f"{folder}{os.sep}"
        self.count = self.steps = 0
        self.last_operation = self.last_step = -1
        self.on = False

    def start(self, operation: int = -1, step: int = -1) -> None:
        """Count from now on; kill before this operation, or before this step of any kind."""
        self.last_operation, self.last_step, self.on = operation, step, True
        sys.addaudithook(self.audited)
        flush, connect = os.fsync, sqlite3.connect

        def flushed(file: int) -> None:
            self.operation()
            flush(file)

        def connected(*given: Any, **named: Any) -> sqlite3.Connection:
            database = connect(*given, **named)
            if str(given[0]).startswith(self.folder):
                database.set_trace_callback(lambda statement: self.operation())
            return database

        os.fsync, sqlite3.connect = flushed, connected  # type: ignore[assignment]

    def audited(self, event: str, given: tuple[Any, ...]) -> None:
        """Count an audited step, and an operation if it is one."""
        if not self.on:
            return
        self.steps += 1  # first: the kill is audited, too
        if self.steps == self.last_step + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "open":
            path, _, flags = given
            if isinstance(flags, int) and flags & _WRITING and self.is_below(path):
                self.operation()
        elif event in _CHANGING and self.is_below(given[_CHANGING[event]]):
            self.operation()

    def operation(self) -> None:
        """Count an operation."""
        if self.count == self.last_operation:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def is_below(self, path: object) -> bool:
        """Tell whether a path is below the folder."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)


def run_calls(
    calls: Sequence[Call], scenario: Scenario, operation: int = -1, step: int = -1
) -> tuple[int, dict[str, int]]:
    """Run calls in a process of their own, in the work folder; the first is counted, and killed where asked. Return
    the exit status of the last one that ended (negative: a signal), and the counts."""
    counts, log = WORK.with_name("counts.json"), WORK.with_name("log.txt")
    counts.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        status = 1
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.chdir(WORK)
            with scenario.patches():
                operations = Operations(WORK)
                operations.start(operation, step)
                for number, call in enumerate(calls):
                    status = called(call)
                    if not number:
                        operations.on = False
                        operations.last_operation = -1
                        counts.write_text(json.dumps({"operations": operations.count, "steps": operations.steps}))
                    if status:
                        break
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), json.loads(counts.read_text()) if counts.exists() else {}


def called(call: Call) -> int:
    """Run one command line, or a function, and return its status."""
    if callable(call):
        call()
        return 0
    try:
        main(call.split())
        return 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1


def state(folder: Path) -> dict[str, str]:
    """Return what the work folder holds, without times: checksums by path, rows of databases, manifests."""
    runs = [file.parent for file in folder.rglob("manifest.json") if (file.parent / "settings.toml").exists()]
    found: dict[str, str] = {}
    for root in [folder, *sorted(runs)]:  # a run's files twice: the second time without its times
        place = root.relative_to(folder).as_posix()
        for name, digest in result_checksums(Run(root)).items():
            file = root / name
            if file.suffix == ".sqlite":
                digest = rows(file)
            elif name.endswith("manifest.json"):
                continue
            found[os.path.normpath(f"{place}/{name}")] = digest
        if root in runs:
            found[f"{place}/manifest.json"] = timeless(json.loads((root / "manifest.json").read_text()))
    for file in folder.rglob(".*"):
        if file.name != LOCK:
            found[file.relative_to(folder).as_posix()] = "left over"
    return found


def timeless(manifest: Any) -> str:
    """Return a manifest as text, without seconds, memory, and the checksums of files that hold them."""
    measured = ("seconds", "peak_mb", "images", "images_per_s", "worker_peak_mb")
    for note in manifest["stages"].values():
        for name in measured:
            note.pop(name, None)
    for note in [*manifest["stages"].values(), *manifest.get("others", {}).values()]:
        note["files"] = {
            name: digest
            for name, digest in note["files"].items()
            if not (name.endswith(("history.jsonl", "report.html")) or fnmatch(name, "*features/[0-9]*.json"))
        }
    return json.dumps(manifest, sort_keys=True)


def rows(file: Path) -> str:
    """Return the rows of a database without the column `time`."""
    with sqlite3.connect(file) as database:
        database.row_factory = sqlite3.Row
        tables = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
        return repr(
            [
                {key: value for key, value in dict(row).items() if key != "time"}
                for table in sorted(tables)
                if not table.startswith("sqlite_")
                for row in database.execute(f"select * from {table} order by 1")
            ]
        )


def begin(scenario: Scenario) -> None:
    """Make the work folder as it is before the scenario's command."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    if scenario.base:
        shutil.copytree(FOLDER / "base/run", WORK / "run")
    if scenario.prepare is not None:
        status, _ = run_calls([scenario.prepare], scenario)
        assert status == 0, WORK.with_name("log.txt").read_text()


def measure(scenario: Scenario, kills: int) -> dict[str, Any]:
    """Kill a scenario's first command at `kills` moments, and return how often all was as if undisturbed in the end."""
    begin(scenario)
    status, counts = run_calls(scenario.calls, scenario)
    assert status == 0, f"{scenario.name}: {WORK.with_name('log.txt').read_text()}"
    whole = state(WORK)
    begin(scenario)
    run_calls(scenario.calls[:1], scenario)
    first = state(WORK)
    total, failures, sound = counts["operations"], list[str](), 0
    number = min(total, kills)
    moments = [("operation", round(i * (total - 1) / max(number - 1, 1))) for i in range(number)]
    rest = kills - number
    moments += [("step", round((i + 0.5) * counts["steps"] / rest)) for i in range(rest)]
    for kind, moment in moments:
        begin(scenario)
        status, _ = run_calls(scenario.calls[:1], scenario, **{kind: moment})
        while status == 0 and moment:  # there are not always as many
            moment = moment * 3 // 4 if kind == "step" else moment - 1
            begin(scenario)
            status, _ = run_calls(scenario.calls[:1], scenario, **{kind: moment})
        if status != -signal.SIGKILL:
            failures.append(f"{kind} {moment}: not killed, status {status}")
            continue
        between = damage(WORK)
        sound += not between
        finished = state_or_none(WORK) == whole
        was_done = not scenario.repeatable and state_or_none(WORK) == first
        status, _ = run_calls(scenario.calls[1:] if was_done else scenario.calls, scenario)
        said = WORK.with_name("log.txt").read_text()[-500:]
        if status and not finished:
            failures.append(f"{kind} {moment}: status {status}: {said}")
            continue
        now = state(WORK)
        different = sorted(name for name in now.keys() | whole.keys() if now.get(name) != whole.get(name))
        if different or damage(WORK):
            failures.append(
                f"{kind} {moment}: differs in {different[:4]}, damaged {damage(WORK)[:3]}, after {between[:3]}"
            )
    return {
        "kills": len(moments),
        "identical": len(moments) - len(failures),
        "sound": sound,
        "operations": total,
        "failures": failures,
    }


def state_or_none(folder: Path) -> dict[str, str] | None:
    """Return the state of the work folder; None if it cannot be read."""
    try:
        return state(folder)
    except (ValueError, OSError, KeyError):
        return None


def damage(folder: Path) -> list[str]:
    """Return what `doctor` finds damaged in the run folders below a folder."""
    roots = [file.parent for file in folder.rglob("manifest.json") if (file.parent / "settings.toml").exists()]
    tops = [root for root in roots if {root.name, root.parent.name}.isdisjoint(("self_training", ASIDE))]
    return [f"{one.kind} {one.file}" for root in tops for one in examine(root).damage]


def commands() -> list[str]:
    """Return the names of all commands of the command line."""
    return [name for name in app if not name.startswith("-")]


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills per scenario, at least")
    parser.add_argument("--only", nargs="*", help="names of scenarios")
    return parser.parse_args()


def set_up(folder: Path) -> None:
    """Check that every command has a scenario, import the package once for all forks, and make what most scenarios
    begin with, in FOLDER; `folder` is where figures are kept."""
    missing = uncovered(commands())
    assert not missing, f"commands without a scenario: {missing}"
    record_kinds()  # imports the whole package, once for all forks
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    make_base(FOLDER / "base", lambda call, scenario: run_calls([call], scenario)[0])


def run_all() -> None:
    """Measure every scenario that was not measured yet, and write the table."""
    options = parse()
    set_up(FOLDER)
    kept = FOLDER / "kills.json"
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for scenario in SCENARIOS:
        if scenario.name not in options.only if options.only else scenario.name in done:
            continue
        try:
            done[scenario.name] = measure(scenario, options.kills)
        except AssertionError as error:
            print(f"{scenario.name}: {error}", flush=True)
            continue
        found = done[scenario.name]
        print(
            f"{scenario.name}: {found['identical']} of {found['kills']} identical",
            *found["failures"],
            sep="\n  ",
            flush=True,
        )
        kept.write_text(json.dumps(done, indent=1))
    write_results(done, options.kills)


def write_results(done: dict[str, Any], kills: int) -> None:
    """Write the figures and their table."""
    rows = ["| command | operations on files | kills | identical afterwards |", "|---|---:|---:|---:|"]
    figures = {}
    for scenario in SCENARIOS:
        if found := done.get(scenario.name):
            figures[scenario.name] = {key: found[key] for key in ("operations", "kills", "identical", "sound")}
            rows.append(f"| {scenario.name} | {found['operations']} | {found['kills']} | {found['identical']} |")
    total, same = (sum(one[key] for one in figures.values()) for key in ("kills", "identical"))
    rows.append(f"| **all** | | **{total}** | **{same}** |")
    sound = sum(one["sound"] for one in figures.values())
    rows += ["", f"Between the kill and the next command, `doctor` found nothing damaged {sound} times of {total}."]
    rows += ["SIGKILL before the n-th operation, then the same command again; what is compared: docs/reliability.md."]
    print(record("faults", [], figures, "\n".join(rows)).read_text())


if __name__ == "__main__":
    run_all()
