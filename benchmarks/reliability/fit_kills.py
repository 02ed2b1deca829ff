"""Kill `tagseg fit` at random moments of every stage, run it again, and compare the result with an uninterrupted run.

    python -m benchmarks.reliability.fit_kills               36 kills, six per stage; a few seconds each on idle cores
    python -m benchmarks.reliability.fit_kills --seed 1      36 others, also at the same time; the table counts all

Every kill (SIGKILL) hits the command's process, on drawn images, with worker processes and two rounds of self-training,
and is followed by the same command, uninterrupted. tagseg.run.doctor.result_checksums decides what counts as identical.
This benchmark can be interrupted and continued.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.harness import RUNS, record
from PIL import Image, ImageDraw

from tagseg.run.doctor import examine, result_checksums
from tagseg.run.folder import Run
from tagseg.run.stages import STAGES, Stage
from tagseg.settings.settings import Settings

FOLDER = RUNS / "fit_kills"

SETTINGS = Settings.from_dict(
    {
        "device": "cpu",
        "workers": 2,
        "data": {"min_images": 2},
        "train": {"backbone": "test_resnet", "weights": "random", "freeze_stride": 0, "neck": 16, "epochs": 4,
                  "batch": 4, "crop": 65},
        "rca": {"slots": 8, "prototypes": 2, "confidence": 0.0},
        "localise": {"max_side": 64},
        "segment": {"rounds": 2, "epochs": 2, "batch": 4, "crop": 64, "max_side": 64, "predict_scales": [1.0]},
        "report": {"examples": 4},
    }
)  # fmt: skip


SERVER = """
import os, sys
import torch
from tagseg.cli.main import main

torch.set_num_threads(1)
data, settings = sys.argv[1:]
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.chdir(line.rstrip())
        try:
            main(["fit", data, "--out", "run", "--settings", settings])
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
        finally:
            sys.stdout.flush()
        os._exit(status)
    print("process", child, flush=True)
    _, ended = os.waitpid(child, 0)
    print("status", os.waitstatus_to_exitcode(ended), flush=True)
"""
"""Runs the command for every line, which names a folder, in a separate process; torch is imported only once."""

Start = Callable[[Path], tuple[int, Iterator[str]]]


def main() -> None:
    """Make the uninterrupted run, kill others, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=36, help="number of kills, the stages in turn")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "settings.toml").write_text(SETTINGS.to_toml())
    draw(FOLDER / "data")
    whole, kept = Run(FOLDER / "whole" / "run"), FOLDER / f"kills_{options.seed}.jsonl"
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    with fits() as start:
        if not whole.manifest_file.exists() or not whole.done("report"):
            whole.root.parent.mkdir(parents=True, exist_ok=True)
            assert [*start(whole.root.parent)[1]][-1] == "status 0\n", "the undisturbed run failed"
        for number in range(len(done), options.kills):
            moment, stage = random.Random(options.seed * 1000 + number), STAGES[number % len(STAGES)]
            done.append(kill_and_compare(start, whole, FOLDER / f"killed_{options.seed}", stage, moment))
            print(f"{number + 1}/{options.kills}: {done[-1]}", flush=True)
            kept.write_text("".join(json.dumps(one) + "\n" for one in done))
    write_results()


def draw(data: Path) -> Path:
    """Draw 12 training and 4 validation images of red and blue discs with true masks, and return the folder."""
    rows = ["image,tags,split"]
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    for i in range(16):
        grey = np.random.default_rng(i).integers(90, 160, (64, 80, 3), np.uint8)
        image, mask = Image.fromarray(grey), Image.new("L", (80, 64))
        tags = (("red",), ("blue",), ("red", "blue"))[i % 3]
        for number, name in enumerate(tags):
            disc = (6 + 34 * number, 10 + i, 36 + 34 * number, 40 + i)
            ImageDraw.Draw(image).ellipse(disc, fill=name)
            ImageDraw.Draw(mask).ellipse(disc, fill={"blue": 1, "red": 2}[name])
        image.save(data / "images" / f"{i}.png")
        mask.save(data / "masks" / f"{i}.png")
        rows.append(f"{i}.png,{' '.join(tags)},{'val' if i > 11 else 'train'}")
    (data / "tags.csv").write_text("\n".join(rows) + "\n")
    return data


@contextlib.contextmanager
def fits() -> Iterator[Start]:
    """Yield a function that starts `tagseg fit` on the data with the run folder `run` in a folder, and returns its
    process id and its output's lines, of which the last is its exit status (negative: the signal that killed it)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    command: list[str | Path] = [sys.executable, "-c", SERVER, FOLDER / "data", FOLDER / "settings.toml"]
    with subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        reading, writing = server.stdout, server.stdin

        def start(folder: Path) -> tuple[int, Iterator[str]]:
            writing.write(f"{folder}\n")
            writing.flush()
            child = next(int(line.split()[1]) for line in reading if line.startswith("process "))
            return child, lines()

        def lines() -> Iterator[str]:
            for line in reading:
                yield line
                if line.startswith("status "):
                    return

        yield start
        writing.close()


def kill_and_compare(start: Start, whole: Run, folder: Path, stage: Stage, moment: random.Random) -> dict[str, Any]:
    """Kill `fit` within a stage, in a copy of the whole run before that stage, run it again, and return the result."""
    shutil.rmtree(folder, ignore_errors=True)
    run = Run(shutil.copytree(whole.root, folder / "run"))
    if stage == "train":  # from the first moment on, the run folder itself included
        shutil.rmtree(run.root)
    else:
        run.discard(stage)
    child, lines = start(folder)
    seconds = moment.uniform(0, whole.manifest().stages[stage].seconds or 0.0)
    next(line for line in lines if f"stage {stage}" in line)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):  # it was quicker
        os.kill(child, signal.SIGKILL)
    killed = f"status {-signal.SIGKILL}" in [line.strip() for line in lines]
    unfinished = [name for name in STAGES if not run.done(name)] if run.manifest_file.exists() else list(STAGES)
    said = list(start(folder)[1])
    ones, others = result_checksums(run), result_checksums(whole)
    different = sorted(name for name in ones.keys() | others.keys() if ones.get(name) != others.get(name))
    return {
        "stage": unfinished[0] if killed and unfinished else "none",
        "seconds": round(seconds, 2),
        "continued": any("resuming after" in line for line in said),
        "identical": said[-1].strip() == "status 0" and not different and not examine(run.root).damage,
        "different": different[:5] or ("" if said[-1].strip() == "status 0" else "".join(said)[-400:]),
    }


def write_results() -> None:
    """Write the figures of all kills and their table; a run that finished before its kill does not count."""
    files = sorted(FOLDER.glob("kills_*.jsonl"))
    seeds = [int(file.stem.removeprefix("kills_")) for file in files]
    outcomes = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    killed = [one for one in outcomes if one["stage"] != "none"]
    rows = ["| killed in stage | kills | the same bytes afterwards |", "|---|---:|---:|"]
    for stage in STAGES:
        mine = [one for one in killed if one["stage"] == stage]
        rows.append(f"| {stage} | {len(mine)} | {sum(one['identical'] for one in mine)} |")
    identical = sum(one["identical"] for one in killed)
    rows.append(f"| **all** | **{len(killed)}** | **{identical}** |")
    rows += [
        "",
        "SIGKILL at a random moment of each stage, then the same command again; what is compared: docs/reliability.md.",
    ]
    print(record("fit_kills", seeds, {"kills": len(killed), "identical": identical}, "\n".join(rows)).read_text())


if __name__ == "__main__":
    main()
