"""The arms of an ablation, their settings and their run folders."""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

from tagseg.run.folder import Run
from tagseg.settings.settings import Settings

Arm = Literal["cam", "contrast", "aggregation", "both"]
ARMS: tuple[Arm, ...] = get_args(Arm)
"""The parts of the method that are on: none, one of them, or both."""


def arm_settings(settings: Settings, arm: Arm, seed: int) -> Settings:
    """Return the settings of one run: `settings` with the arm's two switches and the seed.

    Raises:
        ValueError: when the settings exclude the arm (posterior maps without aggregation).
    """
    rca = dataclasses.replace(
        settings.rca, contrast=arm in ("contrast", "both"), aggregation=arm in ("aggregation", "both")
    )
    try:
        return dataclasses.replace(settings, seed=seed, rca=rca)
    except ValueError as error:
        raise ValueError(f"arm {arm}: {error}") from error


def run_folder(folder: Path, arm: Arm, seed: int) -> Path:
    """Return the run folder of an arm and a seed."""
    return folder / f"{arm}_{seed}"


def runs_in(folder: Path) -> list[tuple[Arm, int]]:
    """Return the arms and seeds that have a run folder in `folder`, finished or not."""
    seeds = {arm: [path.name.removeprefix(f"{arm}_") for path in folder.glob(f"{arm}_*")] for arm in ARMS}
    pairs = [(arm, seed) for arm in ARMS for seed in sorted(int(text) for text in seeds[arm] if text.isdecimal())]
    return [pair for pair in pairs if Run(run_folder(folder, *pair)).manifest_file.exists()]
