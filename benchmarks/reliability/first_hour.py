"""Measure what a new user meets: what is installed, how fast mistakes are answered, and the way to the first masks.

    python -m benchmarks.reliability.first_hour PHOTOS --weights mobilenetv2_100.safetensors
    python -m benchmarks.reliability.first_hour PHOTOS --weights mobilenetv2_100.safetensors --parts demo

PHOTOS: a folder of tagged photographs. Sizes are those of the packages that this environment has for `make demo` and
`make test`. Lines are counted in a terminal of 80 columns. The segmentation network learns for 10 steps: the masks are
finished before it begins, and how many lines are printed does not depend on the steps. Figures of parts that are not
measured stay those of the earlier result.
"""

import argparse
import os
import pty
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from benchmarks.harness import KEPT, measured, record
from packaging.requirements import Requirement

from tagseg.evaluate.scores import read_evaluation
from tagseg.run.folder import Run

MISTAKES = (
    "fit nowhere --out new",
    "fit PHOTOS --out new --train.epohcs 3",
    "fit PHOTOS --out new --device cudda",
    "fit PHOTOS --out new --train.backbone resnet5",
    "fit PHOTOS --out new --train.weights none.safetensors",
    "fit PHOTOS --out new --quality fsat",
    "predict nowhere PHOTOS --out new",
    "worst nowhere",
    "export nowhere --to coco --out new",
    "inspekt PHOTOS",
)


PARTS = ("installed", "mistakes", "demo", "fit")
"""What is measured, each by itself."""


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    figures = measured("first_hour")
    if "installed" in options.parts:
        figures |= installed()
    with tempfile.TemporaryDirectory() as work:
        if "mistakes" in options.parts:
            for line in MISTAKES:
                status, cpu, _, _ = called(line.replace("PHOTOS", str(options.photos.resolve())).split(), work)
                assert status == 2, line
                figures[f"CPU s, tagseg {line}"] = cpu
        if "demo" in options.parts:
            for line in ("demo", "demo --quick"):
                status, cpu, _, _ = called([*line.split(), "--out", line.replace(" ", "_")], work)
                assert status == 0, line
                found = read_evaluation(Run(Path(work) / line.replace(" ", "_") / "run"))
                assert found.pseudo_masks is not None and found.segmenter is not None
                figures[f"CPU s, tagseg {line}"] = cpu
                figures[f"mIoU of masks, tagseg {line}"] = round(100 * found.pseudo_masks.miou, 1)
                figures[f"mIoU on new images, tagseg {line}"] = round(100 * found.segmenter.miou, 1)
        if "fit" in options.parts:
            figures |= fitted(options.photos.resolve(), options.weights.resolve(), work)
    rows = ["| | |", "|---|---:|", *(f"| {name} | {value:,} |" for name, value in figures.items())]
    rows += ["", KEPT]
    print(record("first_hour", [0], figures, "\n".join(rows)).read_text())


def installed() -> dict[str, float]:
    """Return number and size of the packages that two commands of the README need."""
    figures: dict[str, float] = {}
    for command, extra in (("make demo", ""), ("make test", "dev")):
        packages = required(extra)
        figures[f"packages, {command}"] = len(packages)
        figures[f"MB, {command}"] = round(sum(map(megabytes, packages.values())))
    return figures


def fitted(photos: Path, weights: Path, work: str) -> dict[str, float]:
    """Return what a fast fit of the photographs takes and prints."""
    count = sum(path.suffix == ".jpg" for path in photos.iterdir())
    shown = ["--quality", "fast", "--segment.steps", "10", "--train.weights", str(weights)]
    status, seconds, wall, lines = called(["fit", str(photos), "--out", "run", *shown], work)
    assert status == 0
    notes = Run(Path(work) / "run").manifest().stages
    masks = sum(notes[stage].seconds or 0.0 for stage in ("train", "localise", "masks"))
    return {
        f"minutes to the masks of {count} photographs, without the installation": round(masks / 60, 1),
        f"minutes of that fit, {count} photographs": round(wall / 60, 1),
        "CPU s of that fit": seconds,
        "lines printed by fit in a terminal": lines,
    }


def required(extra: str) -> dict[str, Distribution]:
    """Return the packages of this environment that tagseg requires, with those of an extra."""
    found: dict[str, Distribution] = {}
    waiting = [("tagseg", extra)]
    while waiting:
        name, wanted = waiting.pop()
        key = name.lower().replace("_", "-")
        if key in found:
            continue
        try:
            found[key] = distribution(name)
        except PackageNotFoundError:
            continue
        needs = map(Requirement, found[key].requires or ())
        waiting += [(one.name, "") for one in needs if one.marker is None or one.marker.evaluate({"extra": wanted})]
    return found


def megabytes(package: Distribution) -> float:
    """Return the size of a package's files."""
    paths = (str(file.locate()) for file in package.files or ())
    return sum(os.path.getsize(path) for path in paths if os.path.exists(path)) / 1e6


def called(arguments: list[str], folder: str) -> tuple[int, float, float, int]:
    """Run a command of tagseg in a terminal; return its status, its CPU and wall seconds, and the lines it leaves."""
    own, other = pty.openpty()
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    command = [sys.executable, "-m", "tagseg", *arguments]
    with subprocess.Popen(command, cwd=folder, stdin=other, stdout=other, stderr=other, env=environment) as process:
        os.close(other)
        text = b""
        while True:
            try:
                part = os.read(own, 1 << 16)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            text += part
    os.close(own)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # A line that is cleared again, as those of progress, does not count: each is one step up.
    return process.returncode, round(cpu, 2), time.monotonic() - started, text.count(b"\n") - text.count(b"\x1b[1A")


if __name__ == "__main__":
    main()
