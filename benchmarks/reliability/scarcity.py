"""Run every command where something is scarce, and tell whether it works, says what to do, or fails without a word.

    python -m benchmarks.reliability.scarcity                      one scenario per command: about half an hour
    python -m benchmarks.reliability.scarcity --all                every scenario
    python -m benchmarks.reliability.scarcity --only export fit    those; the table has all that were tried so far
    python -m benchmarks.reliability.scarcity --again              what did not work before, or was not clear

The commands are those of scenarios.py, on the run of faults.py; a command without a scenario ends this program. Each
cell runs in a process of its own, which makes one thing scarce (`SHORTAGES`) for itself alone: limits of the process,
and small file systems in a mount namespace of its own, which needs root on Linux (elsewhere these cells are `-`).
Then the command runs once more without the shortage. This benchmark can be interrupted and continued.

Outcomes: works; clear error (status 2, and a message with a remedy); unclear error; traceback; crash (ended by a
signal); hang (more than `HANG_S` seconds).
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import RUNS, record
from benchmarks.reliability.faults import FOLDER, run_calls, set_up
from benchmarks.reliability.scenarios import SCENARIOS, WORK, Call, Scenario

from tagseg.cli.main import error_text, main

HANG_S = 180
KEPT = RUNS / "scarcity"
LOG = KEPT / "log.txt"

REMEDY = re.compile(
    r"free some|raise the limit|make it writable|make the file system writable|change its permissions|choose another|"
    r"TMPDIR|--shm-size|--workers 0|lower |set HOME|ulimit"
)
"""What a clear message says to do about a shortage."""

FAILED = "from corrections failed: "
"""What a server logs that goes on without having done its work."""

NAMESPACE, RECURSIVE_PRIVATE, READ_ONLY_AGAIN, BIND = 0x00020000, 0x4000 | 0x40000, 0x1 | 0x20, 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Shortage:
    """Something scarce.

    begin: makes it so in this process, in the work folder, before the command. mounts: whether it needs file systems.
    flags: added to a command that knows the first of them. fresh: a new interpreter, because it concerns what is
    imported and found at the start.
    """

    begin: Callable[[], None]
    mounts: bool = False
    flags: tuple[str, ...] = ()
    fresh: bool = False


def mount(place: str | Path, size: str) -> None:
    """Mount an empty file system in memory."""
    Path(place).mkdir(parents=True, exist_ok=True)
    if _libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))


def fill(folder: Path, left: int) -> None:
    """Fill the file system of a folder but for some bytes."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(65_536)) == 65_536:
            pass
    free = folder / "filler"
    os.truncate(free, max(free.stat().st_size - left, 0))


def full_disk() -> None:
    """Leave 8 kB on the disk of the work folder."""
    fill(WORK, 8_192)


def read_only() -> None:
    """Make the work folder's file system read-only."""
    if _libc.mount(b"tmpfs", os.fsencode(WORK), b"tmpfs", READ_ONLY_AGAIN, b""):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(WORK))


def full_temporary() -> None:
    """Leave nothing in the folders of temporary files."""
    for place in ("/tmp", "/var/tmp"):
        mount(place, "4k")
        fill(Path(place), 0)
    import tempfile

    tempfile.tempdir = None


def shared_memory(size: str) -> Callable[[], None]:
    """Return a function that makes shared memory small."""
    return lambda: mount("/dev/shm", size)


def limit(which: int, value: int) -> Callable[[], None]:
    """Return a function that sets a limit of the process and of those that it starts."""
    return lambda: resource.setrlimit(which, (value, value))


def no_home() -> None:
    """Forget the home of the user, and that the system knows the user: as in a container that runs with --user."""
    for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME"):
        os.environ.pop(name, None)
    if _libc.mount(b"/dev/null", b"/etc/passwd", None, BIND, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "/etc/passwd")


def little_memory() -> None:
    """Leave 48 MB of addresses to the process, besides what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit(resource.RLIMIT_AS, pages * resource.getpagesize() + 48 * 2**20)()


SHORTAGES: dict[str, Shortage] = {
    "full disk": Shortage(full_disk, mounts=True),
    "ulimit -f": Shortage(limit(resource.RLIMIT_FSIZE, 4_096)),
    "read-only": Shortage(read_only, mounts=True),
    "full TMPDIR": Shortage(full_temporary, mounts=True),
    "/dev/shm 64 MB": Shortage(shared_memory("64m"), mounts=True, flags=("--workers", "2")),
    "/dev/shm 64 kB": Shortage(shared_memory("64k"), mounts=True, flags=("--workers", "2")),
    "64 files": Shortage(limit(resource.RLIMIT_NOFILE, 64), flags=("--workers", "2")),
    "no HOME": Shortage(no_home, mounts=True, fresh=True),
    "48 MB addresses": Shortage(little_memory),
}


def can_mount() -> bool:
    """Tell whether a process may have file systems of its own."""
    child = os.fork()
    if not child:
        with contextlib.suppress(OSError):
            own_mounts()
            mount(WORK, "1m")
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def own_mounts() -> None:
    """Give this process mounts of its own: they end with it."""
    if _libc.unshare(NAMESPACE) or _libc.mount(b"none", b"/", None, RECURSIVE_PRIVATE, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def try_cell(scenario: Scenario, shortage: Shortage, mounts: bool) -> dict[str, Any]:
    """Run a scenario's command with a shortage, then without, and return how both ended."""
    answer = KEPT / "answer.json"
    answer.unlink(missing_ok=True)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    child = os.fork()
    if not child:
        try:
            if mounts:
                own_mounts()
                mount(WORK, "96m")
            answer.write_text(json.dumps(both(scenario, shortage)))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
    return json.loads(answer.read_text()) if answer.exists() else {"outcome": "not tried"}


def both(scenario: Scenario, shortage: Shortage) -> dict[str, Any]:
    """Return how the command ends with the shortage, and then without."""
    if scenario.base:
        shutil.copytree(FOLDER / "base/run", WORK / "run")
    if scenario.prepare is not None:
        status, _ = run_calls([scenario.prepare], scenario)
        assert status == 0, WORK.with_name("log.txt").read_text()
    call = with_flags(scenario.calls[0], scenario.command, shortage.flags)
    outcome, said = attempt(call, scenario, shortage)
    found = {"outcome": outcome, "said": said[-1500:]}
    if outcome == "clear error" and shortage.begin is not read_only:
        (WORK / "filler").unlink(missing_ok=True)
        again, said = attempt(call, scenario, None)
        found |= {"again": again, "said again": said[-1500:]}
    return found


def with_flags(call: Call, command: str, flags: tuple[str, ...]) -> Call:
    """Return a command line with flags, if the command knows them."""
    known = ("fit", "train", "localise", "masks", "segment", "evaluate", "report", "ablate")
    return f"{call} {' '.join(flags)}" if isinstance(call, str) and flags and command in known else call


def attempt(call: Call, scenario: Scenario, shortage: Shortage | None) -> tuple[str, str]:
    """Run a command in a process of its own, and return its outcome and the end of what it printed."""
    LOG.write_text("")
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        ended = 1
        try:
            with LOG.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if shortage is not None and shortage.mounts:
                own_mounts()  # what is mounted for the shortage ends with this process
            os.chdir(WORK)
            if shortage is not None and shortage.fresh and isinstance(call, str) and not scenario.patched:
                shortage.begin()
                code = "import sys; from tagseg.cli.main import main; main(sys.argv[1:])"
                os.execv(sys.executable, [sys.executable, "-c", code, *call.split()])
            with scenario.patches():
                if shortage is not None:
                    shortage.begin()
                ended = called(call)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
            os._exit(ended)
    status = ended_in_time(child)
    said = LOG.read_text(errors="replace")
    if (WORK / "~").exists():
        return "writes to a folder ~", said
    return outcome_of(status, said), said


def ended_in_time(child: int) -> int | None:
    """Return a process's exit status; None, and end it with all that it started, if it takes too long."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        found, ended = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(ended)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def called(call: Call) -> int:
    """Run a command line, or a function as a server's page does, and return the exit status."""
    try:
        if callable(call):
            call()
            return 0
        main(call.split())
        return 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except (ValueError, OSError) as error:
        if not callable(call):
            raise
        print(f"Error: {error_text(error)}", flush=True)
        return 2


def outcome_of(status: int | None, said: str) -> str:
    """Return the outcome in a word or two."""
    if status is None:
        return "hang"
    if "Traceback (most recent call last)" in said:
        return "traceback"
    if status < 0:
        return f"crash ({signal.Signals(-status).name})"
    if not status and FAILED not in said:
        return "works"
    _, error, message = said.rpartition("Error: " if status else FAILED)
    return "clear error" if status in (0, 2) and error and REMEDY.search(message) else "unclear error"


def chosen(options: argparse.Namespace) -> Iterator[Scenario]:
    """Yield the scenarios that are to be tried: the first of every command, and one that trains networks."""
    seen = set[str]()
    for scenario in SCENARIOS:
        first = scenario.command not in seen or scenario.name == "fit, networks trained"
        seen.add(scenario.command)
        named = {scenario.name, scenario.command} & set(options.only or ())
        if named or (not options.only and (first or options.all)):
            yield scenario


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of scenarios or commands")
    parser.add_argument("--shortages", nargs="*", choices=list(SHORTAGES), default=list(SHORTAGES))
    parser.add_argument("--all", action="store_true", help="every scenario, not one per command")
    parser.add_argument("--again", action="store_true", help="try again what neither worked nor was a clear error")
    return parser.parse_args()


def run_all() -> None:
    """Try all cells that were not tried yet, and write the table."""
    options = parse()
    set_up(KEPT)
    kept, mounts = KEPT / "cells.json", can_mount()
    done: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    scenarios = list(chosen(options))
    for name in options.shortages:
        for scenario in scenarios:
            row = done.setdefault(scenario.name, {})
            cell = row.get(name, {})
            sound = cell.get("outcome") in ("works", "clear error") and cell.get("again", "works") == "works"
            if name in row and not options.only and (sound or not options.again):
                continue
            shortage = SHORTAGES[name]
            row[name] = try_cell(scenario, shortage, mounts) if mounts or not shortage.mounts else {"outcome": "-"}
            kept.write_text(json.dumps(done, indent=1))
            again = row[name].get("again", "works")
            print(f"{scenario.name} | {name}: {row[name]['outcome']}; again: {again}", flush=True)
            for key, wrong in (("said", row[name]["outcome"] not in ("works", "-")), ("said again", again != "works")):
                if wrong:
                    print("   ", row[name].get(key, "")[-700:].strip().replace("\n", "\n    "), flush=True)
    write_results(done)


def write_results(done: dict[str, dict[str, Any]]) -> None:
    """Write the figures and their table."""
    rows = [f"| command | {' | '.join(SHORTAGES)} |", "|---|" + "---|" * len(SHORTAGES)]
    cells: dict[str, dict[str, str]] = {}
    for scenario in SCENARIOS:
        if row := done.get(scenario.name):
            cells[scenario.name] = {name: row[name]["outcome"] if name in row else "-" for name in SHORTAGES}
            rows.append(f"| {scenario.name} | {' | '.join(cells[scenario.name].values())} |")
    counted = Counter(outcome for row in cells.values() for outcome in row.values() if outcome != "-")
    later = [cell["again"] for row in done.values() for cell in row.values() if "again" in cell]
    rows += ["", ", ".join(f"{outcome}: {number}" for outcome, number in counted.most_common()) + ". "
             f"After {len(later)} errors the same command ran again without the shortage: {later.count('works')} "
             "worked."]  # fmt: skip
    rows += ["The shortages, and when an error is clear: benchmarks/reliability/scarcity.py."]
    figures = {"cells": cells, "outcomes": dict(counted), "again": len(later), "worked again": later.count("works")}
    print(record("scarcity", [], figures, "\n".join(rows)).read_text())


if __name__ == "__main__":
    run_all()
