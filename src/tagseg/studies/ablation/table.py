"""The result of an ablation: mean and deviation over seeds, the gain over plain CAM, the table."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagseg.studies.ablation.arms import ARMS, Arm
from tagseg.studies.ablation.scores import BACKGROUND_CUTS, ArmScore
from tagseg.system.files import write_atomically
from tagseg.system.records import json_text

SENSITIVITY = "Sensitivity, chosen with truth: not for claims"


@dataclass(frozen=True)
class Spread:
    """Values by seed, with their mean and sample standard deviation (n - 1; None for one seed)."""

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def text(self, sign: str = "") -> str:
        """Return mean ± deviation with one decimal, `-` for what is unknown; `sign` "+" shows the sign of a gain."""
        if not self.values:
            return "-"
        # Adding 0.0 turns -0.0 into 0.0.
        return f"{round(self.mean, 1) + 0.0:{sign}.1f} ± " + ("-" if self.std is None else f"{self.std:.1f}")

    def to_dict(self) -> dict[str, Any]:
        """Return mean, std, seeds and their values as plain values with two decimals."""
        return {
            "mean": round(self.mean, 2) if self.values else None,
            "std": None if self.std is None else round(self.std, 2),
            "seeds": list(self.values),
            "values": [round(value, 2) for value in self.values.values()],
        }


@dataclass(frozen=True)
class Ablation:
    """The scores of an ablation's finished runs, in the order of `ARMS` and seeds. Its methods return per cent.

    classes: name of each class id (0 is background). images: number of scored training images. missing: names of the
    unfinished runs. settings: what all arms share.
    """

    folder: Path
    classes: tuple[str, ...]
    images: int
    scores: tuple[ArmScore, ...]
    missing: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that have a finished run."""
        return tuple(arm for arm in ARMS if self.of(arm))

    def of(self, arm: Arm) -> list[ArmScore]:
        """Return an arm's scores, one per seed."""
        return [score for score in self.scores if score.arm == arm]

    def miou(self, arm: Arm) -> Spread:
        """Return an arm's mIoU over its seeds."""
        return Spread({score.seed: 100 * score.miou for score in self.of(arm)})

    def iou(self, arm: Arm, class_id: int) -> Spread:
        """Return an arm's IoU of a class over the seeds that have it."""
        return Spread({s.seed: 100 * value for s in self.of(arm) if (value := s.iou[class_id]) is not None})

    def gain(self, arm: Arm, class_id: int | None = None) -> Spread:
        """Return an arm's mIoU, or IoU of a class, minus that of `cam` with the same seed, over the seeds of both."""
        pair = [self.miou(a) if class_id is None else self.iou(a, class_id) for a in (arm, "cam")]
        return Spread({seed: v - pair[1].values[seed] for seed, v in pair[0].values.items() if seed in pair[1].values})

    def sensitivity(self, arm: Arm) -> list[float]:
        """Return an arm's mIoU at each of `BACKGROUND_CUTS`, averaged over seeds."""
        return [100 * statistics.fmean(at) for at in zip(*(score.cuts for score in self.of(arm)), strict=True)]

    def table(self) -> str:
        """Return the result as Markdown: mIoU and gain of each arm, the change per class, and the sensitivity."""
        lines = [self.note, ""] if self.note else []
        if not self.arms:
            return self.note + "\n"
        lines += [
            f"Pseudo-masks of {self.images} training images against their true masks: pooled mIoU in per cent, "
            "background included, mean ± sample standard deviation over seeds. Gain: over `cam` of the same seed.",
            "",
            "| arm | mIoU | gain over cam | seeds | map and its cut |",
            "|---|---:|---:|---|---|",
        ]
        for arm in self.arms:
            gain = "" if arm == "cam" else self.gain(arm).text("+")
            seeds = ", ".join(str(score.seed) for score in self.of(arm))
            lines.append(f"| {arm} | {self.miou(arm).text()} | {gain} | {seeds} | {self.of(arm)[0].rule} |")
        lines += ["", "Change per class, in points of IoU (for `cam` the IoU itself):", "", _row("class", self.arms)]
        lines.append("|---|" + "---:|" * len(self.arms))
        for i, name in enumerate(self.classes):
            cells = [self.iou(arm, i).text() if arm == "cam" else self.gain(arm, i).text("+") for arm in self.arms]
            lines.append(_row(name.replace("|", "\\|"), cells))
        lines += [
            "",
            f"## {SENSITIVITY}",
            "",
            "mIoU without a CRF when every map is cut at one share of its peak:",
            "",
        ]
        lines += [_row("arm", [f"{cut:.1f}" for cut in BACKGROUND_CUTS]), "|---|" + "---:|" * len(BACKGROUND_CUTS)]
        lines += [_row(arm, [f"{value:.1f}" for value in self.sensitivity(arm)]) for arm in self.arms]
        return "\n".join(lines) + "\n"

    @property
    def note(self) -> str:
        """A sentence that names the unfinished runs; empty if there are none."""
        runs = f"{len(self.scores)} runs are finished" if len(self.scores) != 1 else "1 run is finished"
        return f"**Partial table:** {runs}, missing: {', '.join(self.missing)}." if self.missing else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, in per cent with two decimals."""
        return {
            "partial": bool(self.missing),
            "missing": list(self.missing),
            "images": self.images,
            "classes": list(self.classes),
            "arms": {arm: self._arm(arm) for arm in self.arms},
            "settings": self.settings,
        }

    def save(self) -> Path:
        """Write ablation.json and ablation.md into the folder, and return the table's path."""
        write_atomically(self.folder / "ablation.json", json_text(self.to_dict(), 1) + "\n")
        write_atomically(self.folder / "ablation.md", f"# Ablation\n\n{self.table()}")
        return self.folder / "ablation.md"

    def _arm(self, arm: Arm) -> dict[str, Any]:
        per_class = {
            name: {"iou": self.iou(arm, i).to_dict(), "gain": self.gain(arm, i).to_dict()}
            for i, name in enumerate(self.classes)
        }
        cuts = {
            f"{cut:.1f}": round(value, 2) for cut, value in zip(BACKGROUND_CUTS, self.sensitivity(arm), strict=True)
        }
        return {
            **self.miou(arm).to_dict(),
            "gain": self.gain(arm).to_dict(),
            "rule": self.of(arm)[0].rule,
            "per_class": per_class,
            "cuts_chosen_with_truth_not_for_claims": cuts,
        }


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"
