"""The result of a followed protocol next to published figures, as JSON and as a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tagseg._version import __version__
from tagseg.settings.settings import Settings
from tagseg.studies.ablation.table import Spread
from tagseg.studies.bench.check import DataCheck
from tagseg.studies.bench.protocols import PublishedFigure, changed_settings
from tagseg.system.files import write_atomically
from tagseg.system.process import machine, versions
from tagseg.system.records import json_text

_TITLES: dict[PublishedFigure, str] = {
    "pseudo_masks": "pseudo-masks, training images with masks",
    "segmenter": "segmenter, validation images",
    "segmenter_crf": "segmenter and dense CRF, validation images",
    "test": "segmenter and dense CRF, test images",
}


@dataclass(frozen=True)
class BenchResult:
    """The result of following a protocol.

    figures: each figure's mIoU in per cent, by seed. submissions: archives for the test server, by seed. missing: the
    unfinished seeds. settings: those of the first seed. command: the command line.
    """

    folder: Path
    check: DataCheck
    settings: Settings
    figures: Mapping[int, Mapping[PublishedFigure, float]]
    submissions: Mapping[int, Path]
    missing: tuple[int, ...]
    command: str

    def miou(self, figure: PublishedFigure) -> Spread:
        """Return a figure's mIoU in per cent over the seeds that have it."""
        return Spread({seed: found[figure] for seed, found in self.figures.items() if figure in found})

    def table(self) -> str:
        """Return a Markdown table of own and published figures, with sources."""
        published = [one for one in self.check.protocol.published if one.method == self.settings.maps]
        lines = [f"**Partial table:** missing seeds: {_list(self.missing)}.", ""] if self.missing else []
        lines += ["| mIoU, % | tagseg | published | source |", "|---|---:|---:|---|"]
        for figure in get_args(PublishedFigure):
            known = [one for one in published if one.figure == figure]
            own = self.miou(figure).text() if figure != "test" else "by the test server"
            if figure == "test" and not self.submissions:
                own = "-"
            if own != "-" or known:
                said = ", ".join(f"{one.miou:.1f}" for one in known) or "-"
                sources = ", ".join(dict.fromkeys(one.source for one in known)) or "-"
                lines.append(f"| {_TITLES[figure]} | {own} | {said} | {sources} |")
        lines += [
            "",
            f"tagseg: seeds {_list(self.figures) or 'none'}, mean ± sample standard deviation. {self._what()}",
        ]
        return "\n".join([*lines, *self._remarks()]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "protocol": self.check.protocol.name,
            "tagseg": __version__,
            "command": self.command,
            "machine": machine(),
            "versions": versions(),
            "seeds": list(self.figures),
            "missing": list(self.missing),
            "data": self.check.to_dict(),
            "notes": list(self.check.notes),
            "figures": {
                figure: self.miou(figure).to_dict() for figure in get_args(PublishedFigure) if self.miou(figure).values
            },
            "published": [
                {"figure": one.figure, "method": one.method, "miou": one.miou, "source": one.source}
                for one in self.check.protocol.published
            ],
            "submissions": {str(seed): str(path.relative_to(self.folder)) for seed, path in self.submissions.items()},
            "not_the_papers": changed_settings(self.settings, self.check.protocol),
            "settings": self.settings.to_dict(),
        }

    def save(self) -> Path:
        """Write bench.json and bench.md into the folder, and return the table's path."""
        about = self.to_dict()
        write_atomically(self.folder / "bench.json", json_text(about, 1) + "\n")
        numbers = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        text = (
            f"# {self.check.protocol.name}\n\n{self.table()}\n## Data\n\n{self.check.table()}\n"
            f"`{self.command}` on {about['machine']}; {numbers}.\n"
        )
        write_atomically(self.folder / "bench.md", text)
        return self.folder / "bench.md"

    def _what(self) -> str:
        train, segment = self.settings.train, self.settings.segment
        network = f"{segment.network} around {segment.encoder or train.backbone}"
        return f"RCA+{self.settings.maps.upper()}, classifier {train.backbone}, segmenter {network}."

    def _remarks(self) -> list[str]:
        lines = [f"Note: {note}." for note in self.check.notes]
        if changed := changed_settings(self.settings, self.check.protocol):
            lines.append(f"Settings that differ from the paper's: {'; '.join(changed)}.")
        lines += [f"Submission of seed {seed}: {path}" for seed, path in self.submissions.items()]
        return ["", *lines] if lines else []


def _list(seeds: Any) -> str:
    return ", ".join(map(str, seeds))
