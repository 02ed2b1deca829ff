"""history.jsonl: the losses of every epoch of a training."""

from pathlib import Path

from tagseg.system.records import Amount, Number, Positive, Record, read_lines


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
    return list(read_lines(path, EpochRow, "train again with --force"))
