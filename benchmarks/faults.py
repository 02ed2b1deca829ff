"""Kills `tagseg fit` at random moments of every stage, runs it again, and compares the run with an undisturbed one.

    python benchmarks/faults.py               36 kills, six a stage; about 20 seconds each on two idle cores
    python benchmarks/faults.py --kills 60

Every kill (SIGKILL) hits the real command, on drawn images, with worker processes and two rounds of self-training, and
is followed by the same command, undisturbed. What counts as the same: tagseg.doctor.fingerprints. It can be continued.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from record import record

from tagseg.doctor import examine, fingerprints
from tagseg.run import STAGES, Run, Stage
from tagseg.settings import Settings

FOLDER = Path(__file__).resolve().parent / "runs" / "faults"

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


def main() -> None:
    """Make the undisturbed run, kill, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=36, help="how many, the stages in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    data, whole = draw(FOLDER / "data"), Run(FOLDER / "whole" / "run")
    if not whole.manifest_file.exists() or not whole.done("report"):
        whole.root.parent.mkdir(parents=True, exist_ok=True)
        assert start(whole.root.parent, data, "--settings", settings_file()).wait() == 0, "the undisturbed run failed"
    kept = FOLDER / f"kills_{options.seed}.jsonl"
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for number in range(len(done), options.kills):
        moment = random.Random(options.seed * 1000 + number)
        outcome = kill_and_compare(whole, data, STAGES[number % len(STAGES)], moment)
        print(f"{number + 1}/{options.kills}: {outcome}", flush=True)
        done.append(outcome)
        kept.write_text("".join(json.dumps(one) + "\n" for one in done))
    write_results(done[: options.kills], options.seed)


def draw(data: Path) -> Path:
    """Draw 12 training and 4 validation images of red and blue discs with their true masks; returns the folder."""
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


def settings_file() -> Path:
    """Write the settings into a TOML file and return it."""
    file = FOLDER / "settings.toml"
    file.write_text(SETTINGS.to_toml())
    return file


def start(folder: Path, data: Path, *flags: str | Path) -> "subprocess.Popen[str]":
    """Start `tagseg fit` on the run folder `run` in a folder; a name that does not differ between runs."""
    command = [sys.executable, "-m", "tagseg", "fit", data, "--out", "run", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def kill_and_compare(whole: Run, data: Path, stage: Stage, moment: random.Random) -> dict[str, Any]:
    """Kill `fit` within a stage, in a copy of the undisturbed run before it, run it again, and say what came of it."""
    folder = FOLDER / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    run = Run(shutil.copytree(whole.root, folder / "run"))
    if stage == "train":  # from the first moment on, the run folder itself included
        shutil.rmtree(run.root)
    else:
        run.discard(stage)
    child = start(folder, data, "--settings", settings_file())
    seconds = moment.uniform(0, whole.manifest()["stages"][stage]["seconds"])
    assert child.stderr is not None
    for line in child.stderr:
        if f"stage {stage}" in line:
            break
    time.sleep(seconds)
    child.kill()
    child.stderr.close()
    killed = child.wait() == -signal.SIGKILL
    unfinished = [name for name in STAGES if not run.done(name)] if run.manifest_file.exists() else list(STAGES)
    again = start(folder, data, "--settings", settings_file())
    _, said = again.communicate()
    ones, others = fingerprints(run), fingerprints(whole)
    different = sorted(name for name in ones.keys() | others.keys() if ones.get(name) != others.get(name))
    return {
        "stage": unfinished[0] if killed and unfinished else "none",
        "seconds": round(seconds, 2),
        "continued": "continuing behind" in said,
        "identical": again.returncode == 0 and not different and not examine(run.root).damage,
        "different": different[:5] or said[-300:] * bool(again.returncode),
    }


def write_results(outcomes: list[dict[str, Any]], seed: int) -> None:
    """Write the figures and their table; what had finished before it could be killed counts for nothing."""
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
    print(record("faults", [seed], {"kills": len(killed), "identical": identical}, "\n".join(rows)).read_text())


if __name__ == "__main__":
    main()
