"""Every benchmark writes results/NAME.json (command, machine, versions, seeds, figures) and NAME.md made from it."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tagseg.measure.ablation import ArmScore
from tagseg.measure.evaluate import Scores

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tagseg", "torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy", "pillow")


def record(name: str, seeds: list[int], figures: dict[str, Any], table: str) -> Path:
    """Write a benchmark's figures; `table` is the Markdown made from them."""
    about: dict[str, Any] = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {_processor()}, {_memory_gb()} GB, {platform.system()}",
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "seeds": seeds,
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    seeds_said = ", ".join(map(str, seeds))
    foot = f"\n`{about['command']}` on {about['machine']}; seed {seeds_said}; {versions}.\n"
    path = RESULTS / f"{name}.md"
    path.write_text(f"# {name}\n\n{table.rstrip()}\n{foot}", encoding="utf-8")
    return path


def iou_rows(classes: Sequence[str], columns: Mapping[str, Scores | ArmScore]) -> list[str]:
    """Return a Markdown table's lines: the mean and every class's IoU in per cent, a column per score."""
    found = columns.values()
    rows = ["| IoU, % | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    rows.append("| **mean** | " + " | ".join(f"**{100 * scores.miou:.1f}**" for scores in found) + " |")
    for i, name in enumerate(classes):
        rows.append(f"| {name} | " + " | ".join(f"{100 * (scores.iou[i] or 0):.1f}" for scores in found) + " |")
    return rows


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> int:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal"):
            return round(int(line.split()[1]) / 1024**2)
    return 0


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
