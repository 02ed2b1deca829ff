"""Spoiled files for every reader: no traceback, no hang, no memory blow-up, nothing written or run elsewhere.

    python -m benchmarks.reliability.fuzz --cases 110000

Cases are mutations of valid files (fuzz_mutate.py), for files of text also hypothesis' inventions and, where it is
installed (pip install atheris), 5 % of them atheris', which follows the lines of code that are reached. They run in a
process that may take 2 GB and 10 seconds of CPU time a case; it is started again behind a case that kills it. A refusal
counts only as a ValueError that names the file. What the process opens for writing, renames, deletes or starts outside
of its folder is counted by an audit hook.
"""

import argparse
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

FOLLOWED = 0.05
"""Share of atheris' cases among all."""

STATE = struct.Struct("qqqqdd")
"""What a worker notes of a target, where its parent sees it even when it dies: cases begun, refused, accepted, the
slowest case and its seconds, peak memory in MB."""


def work(options: argparse.Namespace) -> None:
    """Be the worker."""
    os.chdir(options.worker)
    if options.follow:
        import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

        with atheris.instrument_imports(include=["tagseg", "tomllib", "json"]):
            import tagseg.prediction.predict  # noqa: F401
    from benchmarks.reliability.fuzz_worker import Worker

    worker = Worker(options.worker, options.seed, options.cases, options.only)
    (options.worker / "plan.json").write_text(json.dumps(worker.cases))
    logging.disable()
    worker.limit()
    worker.follow(options.follow) if options.follow else worker.run()
    (options.worker / "done").touch()


def supervise(root: Path, options: argparse.Namespace, follow: int = 0) -> list[dict[str, Any]]:
    """Run workers until all cases are done; return the cases that killed one."""
    state = root / "state"
    state.write_bytes(b"\0" * STATE.size * 100)
    told = {"worker": root, "seed": options.seed, "cases": options.cases, "follow": follow}
    command = [
        sys.executable,
        "-m",
        "benchmarks.reliability.fuzz",
        *(f"--{name}={value}" for name, value in told.items()),
    ]
    command += [f"--only={name}" for name in options.only]
    killed: list[dict[str, Any]] = []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    for _ in range(100):
        subprocess.run(["rm", "-rf", str(root / "files")], check=True)
        (root / "files").mkdir()
        (root / "done").unlink(missing_ok=True)
        before = state.read_bytes()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if (root / "done").exists() or (follow and done.returncode == 0):
            return killed
        if done.returncode > 0 or state.read_bytes() == before:
            sys.exit(f"the worker does not work:\n{done.stderr[-3000:]}")
        hang = -done.returncode in (signal.SIGPROF, signal.SIGALRM)
        plan, states = read_plan(root, state)
        at = max((i for i, (begun, *_) in enumerate(states) if begun), default=0)
        case = {
            "target": list(plan)[at],
            "case": states[at][0] - 1,
            "kind": "hang" if hang else "killed",
            "what": done.stderr[-2000:],
        }
        killed.append(case)
        (root / f"killed_{len(killed)}").write_bytes((root / "case").read_bytes())
        print(case)
    return killed


def read_plan(root: Path, state: Path) -> tuple[dict[str, int], list[tuple[Any, ...]]]:
    """Return the targets with their numbers of cases, and what the worker noted of each."""
    plan = json.loads((root / "plan.json").read_text())
    content = state.read_bytes()
    return plan, [STATE.unpack_from(content, i * STATE.size) for i in range(len(plan))]


def main() -> None:
    """Run all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=110_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="a target; repeatable; nothing is recorded then")
    parser.add_argument("--keep", type=Path, help="folder for the files of all faults")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--follow", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        root = (options.keep or Path(temporary)).resolve()
        root.mkdir(parents=True, exist_ok=True)
        (root / "faults.jsonl").write_text("")
        faults = supervise(root, options)
        plan, states = read_plan(root, root / "state")
        rows = [(name, *state) for name, state in zip(plan, states, strict=True)]
        try:
            import atheris  # noqa: F401

            faults += supervise(root, options, round(options.cases * FOLLOWED))
            found = read_plan(root, root / "state")[1]
            columns = list(zip(*found, strict=True))
            rows.append(("by atheris: all text", *map(sum, columns[:3]), 0, max(columns[4]), max(columns[5])))
        except ImportError:
            print("atheris is not installed: no cases of its own")
        faults += [json.loads(line) for line in (root / "faults.jsonl").read_text().splitlines()]
    report(rows, faults, options, time.monotonic() - started)


def report(
    rows: list[tuple[Any, ...]], faults: list[dict[str, Any]], options: argparse.Namespace, seconds: float
) -> None:
    """Print, and write the results of a whole run."""
    counts = Counter((fault["target"], fault["kind"]) for fault in faults)
    for fault in faults:
        print(f"--- {fault['target']} {fault['case']} {fault['kind']}\n{fault['what']}")
    lines = [
        "| file | cases | refused | accepted | tracebacks | hangs | slowest, s of CPU | memory, MB |",
        "|---|" + "---:|" * 7,
    ]
    for name, cases, refused, accepted, _, slow, peak in rows:
        bad = counts[name, "traceback"] + counts[name, "killed"], counts[name, "hang"]
        lines.append(
            f"| {name} | {cases:,} | {refused:,} | {accepted:,} | {bad[0]} | {bad[1]} | {slow:.2f} | {peak:.0f} |"
        )
    figures = {
        "cases": sum(row[1] for row in rows),
        "tracebacks": sum(fault["kind"] in ("traceback", "killed") for fault in faults),
        "hangs": sum(fault["kind"] == "hang" for fault in faults),
        "escapes": sum(fault["kind"] == "escape" for fault in faults),
        "slowest_s": round(max(row[5] for row in rows), 2),
        "peak_mb": round(max(row[6] for row in rows)),
        "seconds": round(seconds),
    }
    lines += [
        "",
        f"Together {figures['cases']:,} cases, {figures['tracebacks']} tracebacks, {figures['hangs']} hangs, "
        f"{figures['escapes']} times something written or started elsewhere. Memory is the most that a file's cases "
        "took beyond the readers themselves.",
    ]
    if options.only:
        print("\n".join(lines))
        return
    from benchmarks.harness import record

    print(record("fuzz", [options.seed], figures, "\n".join(lines)).read_text())


if __name__ == "__main__":
    main()
