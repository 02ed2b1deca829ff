"""Check wheel and sdist in clean environments, with the lowest and the newest allowed versions, on every Python.

    python -m benchmarks.reliability.release python3.11 python3.12 python3.13

In each environment the wheel is installed as a user does, and a whole run is made on the command line: fit, predict,
export, export-model, doctor, and the network loaded from Python. Then the sdist replaces the wheel and must predict the
same bytes. An environment takes about 6 GB while it is checked, and is deleted afterwards. With --keep-going a failure
is reported and the next environment is checked.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, record

RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
SHOWN = (
    "torch",
    "torchvision",
    "timm",
    "segmentation-models-pytorch",
    "numpy",
    "numba",
    "pillow",
    "accelerate",
    "cyclopts",
)

DRAW = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image, ImageDraw

folder = Path(sys.argv[1])
folder.mkdir()
rows = ["image,tags,split"]
for i in range(14):
    image = Image.fromarray(np.random.default_rng(i).integers(90, 160, (48, 64, 3), dtype=np.uint8))
    tags = (("red",), ("blue",), ("red", "blue"))[i % 3]
    for place, name in enumerate(tags):
        ImageDraw.Draw(image).ellipse((4 + 28 * place, 8 + i, 28 + 28 * place, 32 + i), fill=name)
    image.save(folder / f"{i}.png")
    rows.append(f"{i}.png,{' '.join(tags)},{'val' if i > 11 else 'train'}")
(folder / "tags.csv").write_text("\\n".join(rows) + "\\n")
"""

SETTINGS = """
device = "cpu"
workers = 1
[data]
min_images = 2
[train]
backbone = "test_resnet"
weights = "random"
freeze_stride = 0
neck = 16
epochs = 2
batch = 4
crop = 33
[rca]
slots = 8
prototypes = 2
confidence = 0.0
[localise]
scales = [1.0]
max_side = 64
[segment]
encoder = "test_resnet"
weights = "random"
freeze_stride = 0
epochs = 1
batch = 4
crop = 32
max_side = 64
"""

LOAD = """
import numpy as np
import tagseg
from PIL import Image

mask = tagseg.load("model", "cpu")(Image.open("photos/0.png").convert("RGB"))
assert mask.shape == (48, 64) and mask.dtype == np.uint8, (mask.shape, mask.dtype)
"""


def main() -> None:
    """Check every Python with the lowest and the newest versions; write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="+", help="interpreters, 3.11 to 3.13")
    parser.add_argument("--only", choices=RESOLUTIONS, help="one of the two resolutions; nothing is recorded then")
    parser.add_argument("--keep-going", action="store_true")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tagseg-release-") as temporary:
        packages = Path(temporary) / "packages"
        said([sys.executable, "-m", "build", "--no-isolation", "--outdir", packages, ROOT])
        for python in options.pythons:
            for name in [options.only] if options.only else RESOLUTIONS:
                found.append(check(python, name, packages, Path(temporary), options.keep_going))
                print(found[-1])
    if not options.only:
        sys.argv[1:] = [f"python{row['python'].rpartition('.')[0]}" for row in found[::2]]
        record("release", [0], {"environments": len(found), "passed": sum(not row["fault"] for row in found),
                                "rows": found}, table(found))  # fmt: skip
    sys.exit(any(row["fault"] for row in found))


def check(python: str, versions: str, packages: Path, parent: Path, keep_going: bool) -> dict[str, Any]:
    """Return the versions in an environment, the seconds of installation and run, and what failed."""
    (wheel,), (sdist,) = packages.glob("*.whl"), packages.glob("*.tar.gz")
    row: dict[str, Any] = {"python": said([python, "-c", "import platform; print(platform.python_version())"]).strip()}
    row |= {"versions": versions, "fault": ""}
    with tempfile.TemporaryDirectory(dir=parent) as temporary:
        home = Path(temporary)
        own = home / "environment" / ("Scripts" if os.name == "nt" else "bin")
        uv = [sys.executable, "-m", "uv", "pip"]
        try:
            said([sys.executable, "-m", "uv", "venv", "--quiet", "--python", python, home / "environment"])
            started = time.monotonic()
            said([*uv, "compile", "--quiet", "--python", python, "--resolution", RESOLUTIONS[versions],
                  ROOT / "pyproject.toml", "--output-file", home / "chosen.txt"])  # fmt: skip
            said([*uv, "install", "--quiet", "--python", own / "python", "--constraint", home / "chosen.txt", wheel])
            row["install_s"] = round(time.monotonic() - started)
            listed = said([*uv, "freeze", "--python", own / "python"])
            installed = dict(line.split("==", 1) for line in listed.splitlines() if "==" in line)
            row["installed"] = {package: installed[package] for package in SHOWN}
            started = time.monotonic()
            run(own, home)
            row["run_s"] = round(time.monotonic() - started)
            said([*uv, "install", "--quiet", "--python", own / "python", "--no-deps", "--reinstall", sdist])
            said([own / "tagseg", "predict", "run", "photos/0.png", "--out", "again", "--device", "cpu"], home)
            if (home / "again/0.png").read_bytes() != (home / "masks/0.png").read_bytes():
                raise RuntimeError("the sdist predicts another mask than the wheel")
        except RuntimeError as error:
            if not keep_going:
                raise
            row["fault"] = str(error)
    return row


def run(own: Path, home: Path) -> None:
    """Run everything once: from drawn photos to masks, files for annotation tools and a network loaded again."""
    said([own / "python", "-c", DRAW, "photos"], home)
    (home / "settings.toml").write_text(SETTINGS)
    for command in (
        ["--version"],
        ["inspect", "photos"],
        ["fit", "photos", "--out", "run", "--settings", "settings.toml"],
        ["predict", "run", "photos", "--out", "masks", "--device", "cpu"],
        ["export", "run", "--to", "coco", "--out", "coco"],
        ["export-model", "run", "--out", "model"],
        ["worst", "run", "-n", "3"],
        ["doctor", "run"],
    ):
        said([own / "tagseg", *command], home)
    said([own / "python", "-c", LOAD], home)
    for made in ("run/report.html", "run/masks/0.png", "masks/predictions.jsonl", "coco/**/*.json"):
        if not any(home.glob(made)):
            raise RuntimeError(f"{made} was not made")


def said(command: list[Any], cwd: Path | None = None) -> str:
    """Return what a command prints when it cannot see the packages of this checkout.

    Raises:
        RuntimeError: with the end of what it said, when it fails.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"COLUMNS": "120", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(words)[:300]}: exit status {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}"
        )
    return done.stdout


def table(found: list[dict[str, Any]]) -> str:
    """Return the Markdown table of the environments."""
    rows = ["| Python | versions | " + " | ".join(SHOWN) + " | result |", "|---|---|" + "---:|" * len(SHOWN) + "---|"]
    for row in found:
        installed = row.get("installed", {})
        numbers = " | ".join(installed.get(package, "") for package in SHOWN)
        result = "failed: " + row["fault"].splitlines()[0][:200] if row["fault"] else "passed"
        rows.append(f"| {row['python']} | {row['versions']} | {numbers} | {result} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
