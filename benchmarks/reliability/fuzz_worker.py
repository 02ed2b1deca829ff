"""The process that fuzz.py runs cases in: within limits, watched, and with notes that outlive it."""

import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability import fuzz_targets
from benchmarks.reliability.fuzz import STATE

from tagseg.system.process import peak_memory_mb, reset_peak_memory

FREE_BYTES, CPU_S, WALL_S = 2 << 30, 10, 120
INVENTED = 0.1
"""Share of hypothesis' cases among those of a text file."""

STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pickle.find_class",
)
CHANGES = (
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
)


class Worker:
    """Runs cases one by one and notes what becomes of them."""

    def __init__(self, root: Path, seed: int, cases: int, names: list[str]) -> None:
        self.root, self.seed = root, seed
        self.targets = fuzz_targets.targets(root / "files")
        self.names = names or list(self.targets)
        self.cases = {name: round(cases * self.targets[name].share / self._shares()) for name in self.names}
        with (root / "state").open("r+b") as file:
            self.state = mmap.mmap(file.fileno(), 0)
        self.escaped: list[str] = []

    def _shares(self) -> float:
        return sum(self.targets[name].share for name in self.names)

    def limit(self) -> None:
        """Warm every target up with valid files, then put the limits and the audit hook in force."""
        import resource

        for name in self.names:
            target = self.targets[name]
            target.file.write_bytes(target.valid[0])
            target.read()
        _inventor(1, self.seed, lambda _: None)()  # hypothesis' own memory is none of the first case's

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

        warnings.simplefilter("ignore")
        sys.addaudithook(watch)

    def run(self) -> None:
        """Run what is left of every target's cases."""
        for number, name in enumerate(self.names):
            target, cases = self.targets[name], self.cases[name]
            begun = self.read_state(number)[0]
            mutations = round(cases * (1 - INVENTED)) if target.text else cases
            reset_peak_memory()
            base = peak_memory_mb()
            for case in range(begun, mutations):
                rng = random.Random(f"{self.seed} {name} {case}")
                self.one(number, case, target.mutation(rng, target.valid), base)
            if begun < cases and target.text:
                self.invent(number, cases - mutations, base)
            if begun < cases:
                target.file.write_bytes(target.valid[0])

    def invent(self, number: int, cases: int, base: float) -> None:
        """Let hypothesis invent cases of a text file."""
        _inventor(cases, self.seed, lambda data: self.one(number, self.read_state(number)[0], data, base))()

    def follow(self, cases: int) -> None:
        """Let atheris look for cases of the text files, whose number is a case's first byte; it ends the process."""
        import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

        texts = [name for name in self.names if self.targets[name].text]
        corpus = self.root / "corpus"
        corpus.mkdir(exist_ok=True)
        for i, name in enumerate(texts):
            for j, data in enumerate(self.targets[name].valid):
                (corpus / f"{i}_{j}").write_bytes(bytes([i]) + data)
        reset_peak_memory()
        base = peak_memory_mb()

        def one(data: bytes) -> None:
            if data:
                target = self.names.index(texts[data[0] % len(texts)])
                self.one(target, self.read_state(target)[0], data[1:], base)

        options = [
            f"-runs={cases}",
            f"-seed={self.seed + 1}",
            "-max_len=4096",
            "-rss_limit_mb=0",
            "-timeout=60",
            "-verbosity=0",
        ]
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
        except BaseException:
            fault = traceback.format_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.process_time() - started
        if seconds > slow:
            slow_case, slow = case, seconds
        if case % 20 == 0 or seconds > 0.1:
            peak = max(peak, peak_memory_mb() - base)
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
        (folder / f"{name}-{case}".replace(" ", "_")).write_bytes(data[: 10**6])

    def read_state(self, number: int) -> tuple[Any, ...]:
        """Return what is noted of a target."""
        return STATE.unpack_from(self.state, number * STATE.size)

    def write_state(self, number: int, *values: Any) -> None:
        """Note how far a target is."""
        STATE.pack_into(self.state, number * STATE.size, *values)


def _inventor(cases: int, start: int, run: Callable[[bytes], None]) -> Callable[[], None]:
    """A hypothesis test of `cases` invented files."""
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    tree = st.recursive(leaf, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=20)
    trees = tree.map(lambda value: json.dumps(value).encode())
    texts = st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))

    @seed(start)
    @settings(max_examples=cases, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.binary() | texts | trees)
    def invented(data: bytes) -> None:
        run(data)

    return invented
