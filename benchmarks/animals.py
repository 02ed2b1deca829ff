"""What the benchmarks on voc_animals share: where data and weights are, the settings, the folder of the runs."""

import argparse
import dataclasses
import logging
from pathlib import Path

from tagseg.settings.settings import Settings

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"


def parse(parser: argparse.ArgumentParser, runs: str = "voc_animals") -> argparse.Namespace:
    """Add the flags that the benchmarks share, read all, and check that data and weights are there.

    `runs` is the name of the folder that the runs are in.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, default=SHARED / "data/voc_animals")
    parser.add_argument("--backbone", default="mobilenetv2_100", help="timm's name")
    parser.add_argument("--weights", "--backbone-weights", type=Path, help="its weights, a .safetensors file")
    parser.add_argument("--out", type=Path, help="folder of the runs ARM_SEED")
    options = parser.parse_args()
    options.weights = options.weights or SHARED / f"weights/{options.backbone}.safetensors"
    options.out = options.out or HERE / "runs" / name(runs, options.backbone)
    if not options.data.is_dir() or not options.weights.is_file():
        parser.error(f"needs {options.data} and {options.weights}; give others with --data and --weights")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return options


def name(what: str, backbone: str) -> str:
    """Return the name of a folder or figure: another backbone than the usual one is part of it."""
    return what if backbone == "mobilenetv2_100" else f"{what}_{backbone}"


def settings(options: argparse.Namespace) -> Settings:
    """Return the file's settings for a backbone and its weights."""
    base = Settings.from_toml(HERE / "voc_animals.toml")
    train = dataclasses.replace(base.train, backbone=options.backbone, weights=str(options.weights))
    return dataclasses.replace(base, train=train)
