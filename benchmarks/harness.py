"""What the benchmarks share: where data, weights and runs are, settings on voc_animals, how figures are recorded.

Every benchmark writes results/NAME.json (command, machine, versions, seeds, figures) and NAME.md made from it.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tagseg.evaluate.scores import Scores
from tagseg.settings.settings import Settings
from tagseg.studies.ablation.scores import ArmScore
from tagseg.system.process import machine, versions

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"
RUNS = BENCHMARKS / "runs"
SHARED = ROOT.parent / "shared"


def parse(parser: argparse.ArgumentParser, runs: str = "voc_animals") -> argparse.Namespace:
    """Add the flags of the benchmarks on voc_animals, parse all flags, and check that data and weights exist.

    `runs` is the name of the folder for the runs.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, default=SHARED / "data/voc_animals")
    parser.add_argument("--backbone", default="mobilenetv2_100", help="timm's name")
    parser.add_argument("--weights", "--backbone-weights", type=Path, help="its weights, a .safetensors file")
    parser.add_argument("--out", type=Path, help="folder for the runs, each named ARM_SEED")
    options = parser.parse_args()
    options.weights = options.weights or SHARED / f"weights/{options.backbone}.safetensors"
    options.out = options.out or RUNS / name(runs, options.backbone)
    if not options.data.is_dir() or not options.weights.is_file():
        parser.error(f"{options.data} and {options.weights} must exist; name others with --data and --weights")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return options


def name(what: str, backbone: str) -> str:
    """Return the name of a folder or a result, with the backbone in it unless it is the usual one."""
    return what if backbone == "mobilenetv2_100" else f"{what}_{backbone}"


def animal_settings(options: argparse.Namespace) -> Settings:
    """Return the settings of voc_animals.toml with the backbone and weights that `options` names."""
    base = Settings.from_toml(BENCHMARKS / "quality/voc_animals.toml")
    train = dataclasses.replace(base.train, backbone=options.backbone, weights=str(options.weights))
    return dataclasses.replace(base, train=train)


def command() -> str:
    """Return the command that started this benchmark, without the folder that it wrote to, which is this machine's."""
    script = Path(sys.argv[0]).resolve().relative_to(ROOT).with_suffix("")
    given = [one for before, one in pairwise(["", *sys.argv[1:]]) if "--out" not in (before, one)]
    return " ".join(["python -m", ".".join(script.parts), *given])


KEPT = "Rows that the command below did not measure are from earlier calls, on other machines."
"""What a table says of figures that `measured` returned."""


def measured(result: str) -> dict[str, Any]:
    """Return the figures of an earlier result; none if there is no such result."""
    file = RESULTS / f"{result}.json"
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["figures"] if file.exists() else {}
    return figures


def record(result: str, seeds: list[int], figures: dict[str, Any], table: str) -> Path:
    """Write a benchmark's figures; `table` is the Markdown made from them."""
    about: dict[str, Any] = {
        "command": command(),
        "machine": machine(),
        "versions": versions(),
        "seeds": seeds,
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{result}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    numbers = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    seed = f"seed {', '.join(map(str, seeds))}; " if seeds else ""
    foot = f"\n`{about['command']}` on {about['machine']}; {seed}{numbers}.\n"
    path = RESULTS / f"{result}.md"
    path.write_text(f"# {result}\n\n{table.rstrip()}\n{foot}", encoding="utf-8")
    return path


def iou_rows(classes: Sequence[str], columns: Mapping[str, Scores | ArmScore]) -> list[str]:
    """Return the lines of a Markdown table: mean and every class's IoU in percent, one column per score."""
    found = columns.values()
    rows = ["| IoU, % | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    rows.append("| **mean** | " + " | ".join(f"**{100 * scores.miou:.1f}**" for scores in found) + " |")
    for i, class_name in enumerate(classes):
        rows.append(f"| {class_name} | " + " | ".join(f"{100 * (scores.iou[i] or 0):.1f}" for scores in found) + " |")
    return rows
