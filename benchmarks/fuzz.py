"""Spoiled files for every reader: no traceback, no hang, no memory blow-up, nothing written or run elsewhere.

    python benchmarks/fuzz.py --cases 110000

Cases are mutations of valid files (fuzz_mutate.py), for files of text also hypothesis' inventions and, where it is
installed (pip install atheris), 5 % of them atheris', which follows the lines of code that are reached. They run in a
process that may take 2 GB and 10 seconds of CPU time a case; it is started again behind a case that kills it. A refusal
counts only as a ValueError that names the file. What the process opens for writing, renames, deletes or starts outside
of its folder is counted by an audit hook.
"""

import argparse
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

FREE_BYTES, CPU_S, WALL_S = 2 << 30, 10, 120
INVENTED, FOLLOWED = 0.1, 0.05
"""Shares of hypothesis' cases among those of a text file, and of atheris' among all."""

STATE = struct.Struct("qqqqdd")
"""What a worker notes of a target, where its parent sees it even when it dies: cases begun, refused, accepted, the
slowest case and its seconds, peak memory in MB."""

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class")
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree")


class Worker:
    """Runs cases one by one and notes what becomes of them."""

    def __init__(self, root: Path, seed: int, cases: int, names: list[str]) -> None:
        import fuzz_targets

        from tagseg.memory import peak_memory_mb, reset_peak_memory

        self.root, self.seed, self.peak, self.reset = root, seed, peak_memory_mb, reset_peak_memory
        self.targets = fuzz_targets.targets(root / "files")
        self.names = names or list(self.targets)
        self.cases = {name: round(cases * self.targets[name].share / self._shares()) for name in self.names}
        with (root / "state").open("r+b") as file:
            self.state = mmap.mmap(file.fileno(), 0)
        self.escaped: list[str] = []

    def _shares(self) -> float:
        return sum(self.targets[name].share for name in self.names)

    def limit(self) -> None:
        """Warm every target up with valid files, then take the limits and the audit hook in force."""
        import resource

        for name in self.names:
            target = self.targets[name]
            target.file.write_bytes(target.valid[0])
            target.read()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + FREE_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        inside = str(self.root.resolve())

        def leaves(path: Any) -> bool:
            if isinstance(path, int) or not path:
                return False
            return not os.path.realpath(os.fsdecode(path)).startswith((inside, "/dev/null", "/proc/"))

        def watch(event: str, given: tuple[Any, ...]) -> None:
            if event in STARTS:
                self.escaped.append(f"{event} {given[:2]!r}"[:200])
            elif event == "open" and (given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and leaves(given[0]):
                self.escaped.append(f"writes {given[0]!r}"[:200])
            elif event in CHANGES and isinstance(given[-1], int) is False and any(map(leaves, given[:2])):
                self.escaped.append(f"{event} {given[:2]!r}"[:200])

        sys.addaudithook(watch)

    def run(self) -> None:
        """Run what is left of every target's cases."""
        for number, name in enumerate(self.names):
            target, cases = self.targets[name], self.cases[name]
            begun = self.read_state(number)[0]
            mutations = round(cases * (1 - INVENTED)) if target.text else cases
            self.reset()
            base = self.peak()
            for case in range(begun, mutations):
                rng = random.Random(f"{self.seed} {name} {case}")
                self.one(number, case, target.mutation(rng, target.valid), base)
            if begun < cases and target.text:
                self.invent(number, cases - mutations, base)
            if begun < cases:
                target.file.write_bytes(target.valid[0])

    def invent(self, number: int, cases: int, base: float) -> None:
        """Let hypothesis invent cases of a text file."""
        from hypothesis import HealthCheck, Phase, given, seed, settings
        from hypothesis import strategies as st

        leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
        tree = st.recursive(leaf, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=20)
        trees = tree.map(lambda value: json.dumps(value).encode())
        texts = st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
        health = settings(max_examples=cases, database=None, deadline=None, derandomize=False, phases=[Phase.generate],
                          suppress_health_check=list(HealthCheck))  # fmt: skip

        @seed(self.seed)
        @health
        @given(st.binary() | texts | trees)
        def invented(data: bytes) -> None:
            self.one(number, self.read_state(number)[0], data, base)

        invented()

    def follow(self, cases: int) -> None:
        """Let atheris look for cases of the text files, whose number is a case's first byte; it ends the process."""
        import atheris  # type: ignore[import-not-found,unused-ignore]

        texts = [name for name in self.names if self.targets[name].text]
        corpus = self.root / "corpus"
        corpus.mkdir(exist_ok=True)
        for i, name in enumerate(texts):
            for j, data in enumerate(self.targets[name].valid):
                (corpus / f"{i}_{j}").write_bytes(bytes([i]) + data)
        self.reset()
        base = self.peak()

        def one(data: bytes) -> None:
            if data:
                target = self.names.index(texts[data[0] % len(texts)])
                self.one(target, self.read_state(target)[0], data[1:], base)

        options = [f"-runs={cases}", f"-seed={self.seed + 1}", "-max_len=4096", "-rss_limit_mb=0", "-timeout=60", "-verbosity=0"]
        atheris.Setup([sys.argv[0], str(corpus), *options], one)
        atheris.Fuzz()

    def one(self, number: int, case: int, data: bytes, base: float) -> None:
        """Run a case."""
        name = self.names[number]
        target = self.targets[name]
        _, refused, accepted, slow_case, slow, peak = self.read_state(number)
        self.write_state(number, case + 1, refused, accepted, slow_case, slow, peak)
        (self.root / "case").write_bytes(data)
        target.file.write_bytes(data)
        started, fault = time.process_time(), ""
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        signal.setitimer(signal.ITIMER_REAL, WALL_S)
        try:
            target.read()
            accepted += 1
        except ValueError as error:
            refused += 1
            if not any(one in str(error) for one in target.names or (target.file.name,)):
                fault = f"unnamed: {type(error).__name__}: {error}"
        except BaseException:  # noqa: BLE001  whatever it is, it is what is looked for
            fault = traceback.format_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.process_time() - started
        if seconds > slow:
            slow_case, slow = case, seconds
        if case % 20 == 0 or seconds > 0.1:
            peak = max(peak, self.peak() - base)
        self.write_state(number, case + 1, refused, accepted, slow_case, slow, peak)
        if fault:
            self.note(name, case, "traceback", fault, data)
        for escape in self.escaped:
            self.note(name, case, "escape", escape, data)
        self.escaped.clear()

    def note(self, name: str, case: int, kind: str, what: str, data: bytes) -> None:
        """Write a fault down, and its file beside it."""
        with (self.root / "faults.jsonl").open("a") as file:
            file.write(json.dumps({"target": name, "case": case, "kind": kind, "what": what[-3000:]}) + "\n")
        folder = self.root / "faults"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}-{case}".replace(" ", "_")).write_bytes(data[:10**6])

    def read_state(self, number: int) -> tuple[Any, ...]:
        """Return what is noted of a target."""
        return STATE.unpack_from(self.state, number * STATE.size)

    def write_state(self, number: int, *values: Any) -> None:
        """Note how far a target is."""
        STATE.pack_into(self.state, number * STATE.size, *values)


def work(options: argparse.Namespace) -> None:
    """Be the worker."""
    os.chdir(options.worker)
    sys.path.insert(0, str(Path(__file__).parent))
    if options.follow:
        import atheris

        with atheris.instrument_imports(include=["tagseg", "tomllib", "json"]):
            import tagseg.segment.predict  # noqa: F401
    worker = Worker(options.worker, options.seed, options.cases, options.only)
    (options.worker / "plan.json").write_text(json.dumps(worker.cases))
    import logging

    logging.disable()
    worker.limit()
    worker.follow(options.follow) if options.follow else worker.run()
    (options.worker / "done").touch()


def supervise(root: Path, options: argparse.Namespace, follow: int = 0) -> list[dict[str, Any]]:
    """Run workers until all cases are done; return the cases that killed one."""
    state = root / "state"
    state.write_bytes(b"\0" * STATE.size * 100)
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(root), "--seed", str(options.seed),
               "--cases", str(options.cases), "--follow", str(follow), *(f"--only={name}" for name in options.only)]  # fmt: skip
    killed: list[dict[str, Any]] = []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    for _ in range(100):
        subprocess.run(["rm", "-rf", str(root / "files")], check=True)
        (root / "files").mkdir()
        (root / "done").unlink(missing_ok=True)
        before = state.read_bytes()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if (root / "done").exists() or (follow and done.returncode == 0):
            return killed
        if state.read_bytes() == before:
            sys.exit(f"the worker does not work:\n{done.stderr[-3000:]}")
        hang = -done.returncode in (signal.SIGPROF, signal.SIGALRM)
        plan, states = read_plan(root, state)
        at = max((i for i, (begun, *_) in enumerate(states) if begun), default=0)
        case = {"target": list(plan)[at], "case": states[at][0] - 1, "kind": "hang" if hang else "killed", "what": done.stderr[-2000:]}
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


def report(rows: list[tuple[Any, ...]], faults: list[dict[str, Any]], options: argparse.Namespace, seconds: float) -> None:
    """Print, and write the results of a whole run."""
    counts = Counter((fault["target"], fault["kind"]) for fault in faults)
    for fault in faults:
        print(f"--- {fault['target']} {fault['case']} {fault['kind']}\n{fault['what']}")
    lines = ["| file | cases | refused | accepted | tracebacks | hangs | slowest, s of CPU | memory, MB |", "|---|" + "---:|" * 7]
    for name, cases, refused, accepted, _, slow, peak in rows:
        bad = counts[name, "traceback"] + counts[name, "killed"], counts[name, "hang"]
        lines.append(f"| {name} | {cases:,} | {refused:,} | {accepted:,} | {bad[0]} | {bad[1]} | {slow:.2f} | {peak:.0f} |")
    figures = {
        "cases": sum(row[1] for row in rows),
        "tracebacks": sum(fault["kind"] in ("traceback", "killed") for fault in faults),
        "hangs": sum(fault["kind"] == "hang" for fault in faults),
        "escapes": sum(fault["kind"] == "escape" for fault in faults),
        "slowest_s": round(max(row[5] for row in rows), 2),
        "peak_mb": round(max(row[6] for row in rows)),
        "seconds": round(seconds),
    }
    lines += ["", f"Together {figures['cases']:,} cases, {figures['tracebacks']} tracebacks, {figures['hangs']} hangs, "
              f"{figures['escapes']} times something written or started elsewhere. Memory is what a file's cases took beyond "
              "the readers themselves, at most."]  # fmt: skip
    if options.only:
        print("\n".join(lines))
        return
    from record import record

    print(record("fuzz", [options.seed], figures, "\n".join(lines)).read_text())


if __name__ == "__main__":
    main()
