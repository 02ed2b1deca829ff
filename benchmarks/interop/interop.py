"""What other tools see in our exports, a live Label Studio, and the cases of real complaints.

    make foreign
    python -m benchmarks.interop.interop --cases CASES

Records the layouts and sources of tags that are read, the versions of the tools that open our exports with the pixels
that each sees wrong (0 where the format can hold every mask), how many of the handed cases are right, and the seconds
of the test with a real Label Studio server. CASES is a folder of folders with a case.sh each, whose exit status is 0 if
the case is right; without it no cases are counted. What cannot be run is null, with the reason.
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
from tests.foreign.environments import python_of
from tests.foreign.test_exports import EXPORTS, drawn, wrong_pixels

from tagseg.data.read import LAYOUTS
from tagseg.data.tag_sources import SOURCES

LIVE = "tests/foreign/test_labelstudio_live.py"


def opened() -> dict[str, dict[str, Any]]:
    """Return, for each export, the tool that opened it, its version and the pixels that differ."""
    found: dict[str, dict[str, Any]] = {}
    for name, export in EXPORTS.items():
        if not python_of(export.tool).exists():
            found[name] = {"tool": export.tool, "version": None, "wrong_pixels": None, "reason": "not installed"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            wrong, told = wrong_pixels(export, Path(folder))
        found[name] = {"tool": export.tool, "version": told["version"], "wrong_pixels": wrong}
        print(name, found[name], flush=True)
    return found


def cases(folder: Path | None) -> dict[str, Any] | None:
    """Return how many of the handed cases are right, and the names of those that are not; None without a folder."""
    if folder is None:
        return None
    environment = os.environ | {"TAGSEG": str(Path(sys.executable).with_name("tagseg"))}
    scripts = sorted(folder.glob("*/case.sh"))
    wrong = []
    for script in scripts:
        if subprocess.run(["bash", script], env=environment, capture_output=True).returncode:
            wrong.append(script.parent.name)
        print(script.parent.name, "wrong" if script.parent.name in wrong else "right", flush=True)
    return {"right": len(scripts) - len(wrong), "all": len(scripts), "wrong": wrong}


def live() -> dict[str, Any]:
    """Return the seconds of the test with a real Label Studio, or null and the reason."""
    if not python_of("labelstudio").exists():
        return {"seconds": None, "reason": "label-studio is not installed (make foreign)"}
    version = subprocess.run(
        [python_of("labelstudio"), "-c", "import importlib.metadata as m; print(m.version('label-studio'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "0", LIVE], cwd=ROOT)
    if done.returncode:
        return {"seconds": None, "version": version, "reason": "the test fails"}
    return {"seconds": round(time.monotonic() - began, 1), "version": version}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, help="the folder of handed cases")
    options = parser.parse_args()
    pixels = sum(mask.size for mask in drawn(False).values())
    figures: dict[str, Any] = {
        "layouts": [f"{layout.name}: {layout.known_by}" for layout in LAYOUTS],
        "tag_sources": [source.name for source in SOURCES],
        "pixels": pixels,
        "opened": opened(),
        "cases": cases(options.cases),
        "live": live(),
    }
    rows = ["| export | opened by | version | wrong pixels |", "|---|---|---|---:|"]
    rows += [
        f"| {name} | {one['tool']} | {one['version'] or one['reason']} | {one['wrong_pixels']} of {pixels} |"
        for name, one in figures["opened"].items()
    ]
    counted, seconds = figures["cases"], figures["live"]["seconds"]
    said = [
        f"{len(LAYOUTS)} layouts and {len(SOURCES)} sources of tags are read.",
        f"Handed cases right: {counted['right']} of {counted['all']}." if counted else "No handed cases were run.",
        f"Through a real Label Studio {figures['live']['version']} and back: 0 pixels wrong, {seconds} s."
        if seconds is not None
        else f"Label Studio live: not run ({figures['live']['reason']}).",
    ]
    record("interop", [], figures, "\n".join([*rows, "", *said]))


if __name__ == "__main__":
    main()
