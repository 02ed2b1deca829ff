"""history.jsonl: the losses of every epoch of a training."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tagseg.system.records import Amount, Number, Positive, Record, read_lines, write_lines


class EpochRow(Record, frozen=True, omit_defaults=True):
    """The figures of an epoch, None for those that the network or its settings do not have.

    loss: what was minimised; the others are its parts. lr: learning rate of the last step. seconds: how long it took.
    """

    epoch: Positive
    loss: Number | None = None
    tag_refined: Number | None = None
    tag_coarse: Number | None = None
    saliency_refined: Number | None = None
    saliency_coarse: Number | None = None
    contrast: Number | None = None
    lr: Number | None = None
    seconds: Amount | None = None


def read_history(path: Path) -> list[EpochRow]:
    """Return the epochs in a history.jsonl in order; none if there is no such file.

    Raises:
        RunError: when a line is damaged.
    """
    if not path.exists():
        return []
    return list(read_lines(path, EpochRow, "train again with --force", lenient=True))


def write_history(path: Path, history: Sequence[Mapping[str, int | float]]) -> None:
    """Write the figures of all epochs to a history.jsonl; those that are not finite numbers are left out."""
    rows = [{name: value for name, value in figures.items() if math.isfinite(value)} for figures in history]
    write_lines(path, [msgspec.convert(row, EpochRow) for row in rows])
