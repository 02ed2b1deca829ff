"""What other tools see in our exports: pixels that differ, by the newest reader of each; Label Studio live; the cases.

    make foreign
    python -m benchmarks.interop.interop

Records the versions of the tools, wrong pixels per export (of 457, 0 where the format can hold every mask), the handed
cases that are right (shared/cases, where it exists), and the seconds of the test with a real Label Studio server.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from benchmarks.harness import ROOT, SHARED, record
from tests.foreign.environments import python_of
from tests.foreign.test_exports import EXPORTS, drawn, wrong_pixels

from tagseg.settings.data import DataSettings


def opened() -> dict[str, dict[str, object]]:
    """Return, for each export, the tool that opened it, its version and the pixels that differ."""
    found: dict[str, dict[str, object]] = {}
    for name, export in EXPORTS.items():
        if not python_of(export.tool).exists():
            sys.exit(f"no environment with {export.tool}: make foreign builds it")
        with tempfile.TemporaryDirectory() as folder:
            wrong, told = wrong_pixels(export, Path(folder))
        found[name] = {"tool": export.tool, "version": told["version"], "wrong_pixels": wrong}
        print(name, found[name])
    return found


def cases() -> dict[str, int]:
    """Return how many of the handed cases are right; nothing where there are none."""
    script = SHARED / "cases/run_all.sh"
    if not script.exists():
        return {}
    environment = os.environ | {"TAGSEG": str(Path(sys.executable).with_name("tagseg"))}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
    verdicts = re.findall(r"rc=(\d+)  ", done.stdout)
    return {"right": verdicts.count("0"), "all": len(verdicts)}


def live_seconds() -> float:
    """Return the seconds of the test with a real Label Studio, after checking that it passes."""
    began = time.monotonic()
    test = "tests/foreign/test_labelstudio_live.py"
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "0", test], cwd=ROOT, check=True)
    return round(time.monotonic() - began, 1)


def main() -> None:
    """Measure and record."""
    pixels = sum(mask.size for mask in drawn(False).values())
    layouts = [name for name in get_args(DataSettings.__annotations__["layout"]) if name != "auto"]
    figures = {
        "layouts": layouts,
        "pixels": pixels,
        "opened": opened(),
        "cases": cases(),
        "live_seconds": live_seconds(),
    }
    rows = ["| export | opened by | version | wrong pixels |", "|---|---|---|---:|"]
    rows += [
        f"| {name} | {one['tool']} | {one['version']} | {one['wrong_pixels']} of {pixels} |"
        for name, one in figures["opened"].items()  # type: ignore[attr-defined]
    ]
    told = figures["cases"]
    right = f"Handed cases right: {told['right']} of {told['all']}. " if told else ""  # type: ignore[call-overload,index]
    rows += ["", f"{right}Masks through a real Label Studio server: 0 pixels wrong, {figures['live_seconds']} s."]
    record("interop", [], figures, "\n".join(rows))


if __name__ == "__main__":
    main()
