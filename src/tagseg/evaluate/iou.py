"""Mean intersection over union (mIoU), pooled over all pixels of a set of images."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

from tagseg.data.records import VOID


@dataclass(frozen=True)
class Iou:
    """Pooled IoU: `iou[i]` of id i (0 is background), None for an id in neither truth nor masks; `miou` is the mean."""

    miou: float
    iou: tuple[float | None, ...]


def confusion(
    truth: UInt8[np.ndarray, "h w"], predicted: UInt8[np.ndarray, "h2 w2"], ids: int
) -> Int[np.ndarray, "ids ids"]:
    """Count pixels by true id (rows) and predicted id (columns), both 0 to ids - 1; pixels that are void in `truth` are
    left out.

    Raises:
        ValueError: when the sizes differ or an id is out of range (a prediction must decide every counted pixel).

    >>> truth, predicted = np.array([[0, 1, 1, 255]], np.uint8), np.array([[0, 1, 0, 0]], np.uint8)
    >>> confusion(truth, predicted, ids=2).tolist()
    [[1, 0], [1, 1]]
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth and prediction must have the same size, got {truth.shape} and {predicted.shape}")
    counts = truth != VOID
    true, seen = truth[counts].astype(np.int64), predicted[counts].astype(np.int64)
    if len(true) and max(true.max(), seen.max()) >= ids:
        raise ValueError(f"ids must be 0 to {ids - 1}, got {max(true.max(), seen.max())} in truth or prediction")
    matrix: Int[np.ndarray, "ids ids"] = np.bincount(true * ids + seen, minlength=ids * ids).reshape(ids, ids)
    return matrix


def iou(matrix: Int[np.ndarray, "ids ids"]) -> Iou:
    """Return the IoU from a confusion matrix summed over images: intersection / union per id, and the mean over the ids
    that occur.

    >>> iou(np.array([[3, 1], [0, 4]])).iou
    (0.75, 0.8)
    """
    hit = np.diag(matrix).astype(float)
    union = matrix.sum(0) + matrix.sum(1) - hit
    scores = tuple(float(h / u) if u else None for h, u in zip(hit, union, strict=True))
    present = [score for score in scores if score is not None]
    return Iou(float(np.mean(present)) if present else 0.0, scores)
