"""Every benchmark writes results/NAME.json (command, machine, versions, seeds, figures) and NAME.md made from it."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagseg.evaluate.evaluate import Scores
from tagseg.studies.ablation.table import ArmScore
from tagseg.system.process import machine, versions

RESULTS = Path(__file__).parent / "results"


def record(name: str, seeds: list[int], figures: dict[str, Any], table: str) -> Path:
    """Write a benchmark's figures; `table` is the Markdown made from them."""
    about: dict[str, Any] = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "seeds": seeds,
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    numbers = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    seeds_said = ", ".join(map(str, seeds))
    foot = f"\n`{about['command']}` on {about['machine']}; seed {seeds_said}; {numbers}.\n"
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
