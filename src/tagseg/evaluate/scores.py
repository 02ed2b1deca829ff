"""The scores of a run, as evaluation.json keeps them."""

from pathlib import Path
from typing import Literal

from tagseg.run.folder import Run
from tagseg.system.records import Count, Record, Share, read_record, write_record

_AGAIN = "evaluate again with --force"


class Scores(Record, frozen=True):
    """Scores of masks against true masks.

    miou: pooled mean IoU (0..1) with background, without void pixels. iou: per class id, None for a class that is in
    neither truth nor masks. images: number of images of `split`. unsure_share: share of the pixels that pseudo-masks
    leave void; they are scored by their likelier label.
    """

    miou: Share
    iou: tuple[Share | None, ...]
    images: Count
    split: Literal["train", "val"]
    unsure_share: Share | None = None


class Evaluation(Record, frozen=True):
    """The scores of a run; None where there are no true masks.

    classes: `background` and the classes. pseudo_masks: of the training images. segmenter: of the validation images.
    calibrated: number of training images left out because `tagseg calibrate` has seen their true masks. self_trained:
    the pseudo-masks that the last round of self-training learned from, None with one round. full_supervision: the same
    network trained on true masks (see `tagseg.studies.full_supervision`), None if it was not trained.
    """

    classes: tuple[str, ...]
    pseudo_masks: Scores | None = None
    segmenter: Scores | None = None
    calibrated: Count = 0
    self_trained: Scores | None = None
    full_supervision: Scores | None = None

    def __post_init__(self) -> None:
        for scores in (self.pseudo_masks, self.segmenter, self.self_trained, self.full_supervision):
            if scores and len(scores.iou) != len(self.classes):
                raise ValueError(f"{len(scores.iou)} IoUs of {len(self.classes)} classes")

    def share(self) -> float | None:
        """Return the segmenter's mIoU as a share of full supervision's, None where either is unknown."""
        full = self.full_supervision
        return self.segmenter.miou / full.miou if self.segmenter and full and full.miou else None

    def table(self) -> str:
        """Return the scores as a Markdown table, in per cent."""
        columns = [
            ("pseudo-masks", self.pseudo_masks),
            ("pseudo-masks after self-training", self.self_trained),
            ("segmenter", self.segmenter),
            ("full supervision", self.full_supervision),
        ]
        shown = [(f"{name} ({scores.images} {scores.split} images)", scores) for name, scores in columns if scores]
        left_out = f"Not scored: {self.calibrated} training images whose true masks `tagseg calibrate` has seen.\n"
        if not shown:
            return left_out if self.calibrated else "No true masks in the data set: nothing to score.\n"
        rows = [
            "| class | " + " | ".join(name for name, _ in shown) + " |",
            "|---|" + "---:|" * len(shown),
            "| **mean IoU** | " + " | ".join(f"**{100 * scores.miou:.1f}**" for _, scores in shown) + " |",
        ]
        for i, name in enumerate(self.classes):
            cells = [scores.iou[i] for _, scores in shown]
            safe = name.replace("|", "\\|")
            rows.append(f"| {safe} | " + " | ".join("-" if c is None else f"{100 * c:.1f}" for c in cells) + " |")
        share = self.share()
        reached = "" if share is None else f"\nThe segmenter reaches {100 * share:.1f} % of full supervision.\n"
        return "\n".join(rows) + "\n" + reached + (f"\n{left_out}" if self.calibrated else "")


def read_evaluation(run: Run) -> Evaluation:
    """Return the scores of a run.

    Raises:
        RunError: when the run has not been evaluated, or evaluation.json is damaged.
    """
    run.require("evaluate")
    return read_record(run.evaluation_file, Evaluation, _AGAIN)


def write_evaluation(run: Run, evaluation: Evaluation) -> None:
    """Write the scores of a run to evaluation.json."""
    write_record(run.evaluation_file, evaluation)


def read_bound_scores(bound: Run) -> Scores:
    """Return the scores of a network trained on true masks, from the folder `Run.full_supervision`.

    Raises:
        RunError: when evaluation.json is missing or damaged.
    """
    return read_record(bound.evaluation_file, Scores, _AGAIN)


def write_bound_scores(file: Path, scores: Scores) -> None:
    """Write the scores of a network trained on true masks to evaluation.json in the folder `Run.full_supervision`."""
    write_record(file, scores)
