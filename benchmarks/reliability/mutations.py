"""Spoil every JSON file of a real run, and count how the readers of the commands refuse it.

    python -m benchmarks.reliability.mutations               500 mutations of each file; the run is that of faults.py
    python -m benchmarks.reliability.mutations --cases 20    fewer

A mutation deletes, doubles, swaps or makes absurd a value of the file, or spoils its bytes (fuzz_mutate.py). Then the
functions with which `review`, `report`, `atlas`, `export`, `export-model`, `worst` and `doctor` read the file are
called. Each must accept what it found or raise an error in words, a ValueError; all else would be a traceback. More
than `HANG_S` seconds are a hang. This benchmark can be interrupted and continued.
"""

import argparse
import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from benchmarks.harness import RUNS, record
from benchmarks.reliability.fuzz_mutate import json_lines, some_json
from benchmarks.reliability.scenarios import FOLDER as FAULTS

from tagseg.data.data_file import read_data_file
from tagseg.errors import WriteError
from tagseg.evaluate.quality import read_quality
from tagseg.evaluate.scores import read_evaluation
from tagseg.evaluate.verdict import class_verdicts
from tagseg.export.masks import collect_masks
from tagseg.export.model import describe
from tagseg.features.cache import open_features
from tagseg.masks.mask_files import read_classes
from tagseg.rca.held_out import read_held_out
from tagseg.rca.train import load_network
from tagseg.report.trust import read_trust
from tagseg.review.queue import read_queue
from tagseg.run.doctor import examine
from tagseg.run.folder import Run
from tagseg.run.history import read_history
from tagseg.segment.read_network import read_predictor
from tagseg.system.changes import settle

HANG_S = 10

Reader = Callable[[Run], object]

CPU = torch.device("cpu")


def read_report(run: Run) -> object:
    """Read what `report` reads."""
    data = read_data_file(run)
    return read_evaluation(run), class_verdicts(run), read_trust(run, data), read_quality(run)


def read_histories(run: Run) -> object:
    """Read the histories of both networks."""
    return [read_history(folder / "history.jsonl") for folder in (run.network, run.segmenter)]


def read_networks(run: Run) -> object:
    """Read what `atlas` and `export-model` read of the networks."""
    return load_network(run.network, CPU), describe(run)


def read_masks(run: Run) -> object:
    """Read what `export` reads."""
    return collect_masks(run, "final", "void")


READERS: dict[str, tuple[Reader, ...]] = {
    "manifest.json": (
        lambda run: examine(run.root),
        read_queue,
        read_masks,
        lambda run: read_predictor(run.segmenter, "cpu"),
    ),
    "data.json": (read_report, read_queue, read_masks),
    "evaluation.json": (read_report,),
    "quality.jsonl": (read_report, read_queue),
    "features/index.json": (lambda run: open_features(run.features),),
    "features/000000.json": (lambda run: open_features(run.features),),
    "network/network.json": (read_networks,),
    "network/held_out.json": (lambda run: read_held_out(run.network), read_report),
    "network/history.jsonl": (read_histories, read_report),
    "segmenter/network.json": (read_networks, lambda run: read_predictor(run.segmenter, "cpu")),
    "segmenter/history.jsonl": (read_histories, read_report),
    "masks/classes.json": (lambda run: read_classes(run.masks / "classes.json"),),
    ".change.json": (lambda run: settle(run.root), lambda run: examine(run.root)),
}
"""The functions that read each file; a file that the run does not have is begun with `CHANGE_FILE`."""

CHANGE_FILE = b'{"by": "atlas", "moved": ["atlas.html", "masks/0.png"], "gone": ["bench", "quality.jsonl"]}'


def main() -> None:
    """Spoil the files, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="mutations of each file")
    options = parser.parse_args()
    if not (FAULTS / "base/run/report.html").exists():
        parser.error("the run is missing: start python -m benchmarks.reliability.faults --only doctor first")
    torch.set_num_threads(1)
    folder = RUNS / "mutations"
    kept = folder / f"found_{options.cases}.json"
    done: dict[str, dict[str, int]] = json.loads(kept.read_text()) if kept.exists() else {}
    shutil.rmtree(folder / "run", ignore_errors=True)
    run = Run(Path(shutil.copytree(FAULTS / "base/run", folder / "run")))
    rows, total = (
        ["| file | mutations | accepted | refused in words | tracebacks | hangs |", "|---|---:|---:|---:|---:|---:|"],
        Counter[str](),
    )
    for name, readers in READERS.items():
        file = run.root / name
        valid = file.read_bytes() if file.exists() else CHANGE_FILE
        spoiled = json_lines if file.suffix == ".jsonl" else some_json
        file.write_bytes(valid)
        if name != ".change.json":  # that one lists what a run without it does not have
            assert worst_outcome(run, readers, name) == "accepted", f"{name}: its readers refuse what tagseg wrote"
        found = Counter[str](done.get(name, {}))
        for case in range(options.cases if name not in done else 0):
            file.write_bytes(spoiled(random.Random(case), [valid]))
            found[worst_outcome(run, readers, f"{name}, case {case}")] += 1
        done[name] = dict(found)
        kept.write_text(json.dumps(done))
        if name == ".change.json":
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(valid)
        columns = [found[key] for key in ("accepted", "refused", "traceback", "hang")]
        rows.append(f"| {name} | {options.cases} | {' | '.join(map(str, columns))} |")
        print(rows[-1], flush=True)
        total += found
    figures = {
        "files": len(READERS),
        "mutations": options.cases * len(READERS),
        "tracebacks": total["traceback"],
        "hangs": total["hang"],
    }
    print(record("mutations", [], figures, "\n".join(rows)).read_text())


def worst_outcome(run: Run, readers: tuple[Reader, ...], where: str) -> str:
    """Return the worst of what the readers do with the run: accepted, refused (in words), traceback or hang."""
    order, worst = ("accepted", "refused", "traceback", "hang"), 0
    for reader in readers:
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(HANG_S)
        outcome = 0
        try:
            reader(run)
        except TimeoutError:
            outcome = 3
        except (ValueError, WriteError):  # DataError and RunError are ValueErrors: the command line prints them
            outcome = 1
        except Exception as error:
            outcome = 2
            print(f"{where}: {error!r:.300}", flush=True)
        finally:
            signal.alarm(0)
        worst = max(worst, outcome)
    return order[worst]


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError


if __name__ == "__main__":
    main()
