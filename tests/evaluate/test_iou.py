import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tagseg.data.records import VOID
from tagseg.evaluate.iou import confusion, iou


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """Draw a number of ids and pairs of truth (with some void) and prediction, of different sizes, often without some
    of the ids."""
    ids = draw(st.integers(2, 6))
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(arrays.array_shapes(min_dims=2, max_dims=2, max_side=6))
        truth = draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from([*range(ids), VOID])))
        pairs.append((truth, draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, ids - 1)))))
    return ids, pairs


@given(cases())
def test_equal_to_torchmetrics(case: tuple[int, list[tuple[np.ndarray, np.ndarray]]]) -> None:
    # Takes seconds to import, in each process that reads this file.
    from torchmetrics.classification import MulticlassJaccardIndex

    ids, pairs = case
    each = MulticlassJaccardIndex(ids, average=None, ignore_index=VOID)
    mean = MulticlassJaccardIndex(ids, average="macro", ignore_index=VOID)
    for truth, predicted in pairs:
        for metric in (each, mean):
            metric.update(torch.from_numpy(predicted).long(), torch.from_numpy(truth).long())
    result = iou(np.sum([confusion(truth, predicted, ids) for truth, predicted in pairs], axis=0))
    assert [score or 0.0 for score in result.iou] == pytest.approx(each.compute().tolist(), abs=1e-6)
    seen = {int(i) for truth, predicted in pairs for i in np.union1d(truth, predicted[truth != VOID])} - {VOID}
    assert {i for i, score in enumerate(result.iou) if score is not None} == seen
    # torchmetrics also leaves absent ids out of the mean; if all pixels are void, its mean is NaN.
    expected = float(mean.compute())
    assert result.miou == pytest.approx(0.0 if math.isnan(expected) else expected, abs=1e-6)


def test_other_packages_agree_except_on_absent_classes_and_pooling() -> None:
    """Class 2 is neither true nor predicted where pixels count."""
    from segmentation_models_pytorch.metrics import get_stats, iou_score
    from sklearn.metrics import jaccard_score

    truth, predicted = (
        np.array([[[0, 0, 1, 1, VOID]], [[0, 1, 1, VOID, 1]]]),
        np.array([[[0, 0, 1, 0, 2]], [[1, 1, 1, 0, 1]]]),
    )
    matrix = np.sum(
        [confusion(*pair, 3) for pair in zip(truth.astype(np.uint8), predicted.astype(np.uint8), strict=True)], 0
    )
    ours, kept = iou(matrix), truth != VOID
    assert ours.iou == (2 / 4, 4 / 6, None)
    assert ours.miou == pytest.approx(jaccard_score(truth[kept], predicted[kept], average="macro"))
    stats = get_stats(
        torch.from_numpy(predicted), torch.from_numpy(truth), mode="multiclass", num_classes=3, ignore_index=VOID
    )
    # It gives 1 to the absent class, and its mean over images is another figure.
    assert float(iou_score(*stats, reduction="macro")) == pytest.approx((2 / 4 + 4 / 6 + 1) / 3)
    assert float(iou_score(*stats, reduction="macro-imagewise")) != pytest.approx(ours.miou, abs=0.01)


def test_counts_by_hand() -> None:
    truth = np.array([[0, 0, 1], [1, 1, 2]], np.uint8)
    predicted = np.array([[0, 1, 1], [1, 2, 2]], np.uint8)
    assert confusion(truth, predicted, 4).tolist() == [[1, 1, 0, 0], [0, 2, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    result = iou(confusion(truth, predicted, 4))
    assert result.iou == (1 / 2, 2 / 4, 1 / 2, None)
    assert result.miou == 0.5


def test_void_pixels_of_the_truth_are_not_counted() -> None:
    truth, predicted = np.full((2, 2), VOID, np.uint8), np.array([[0, 1], [2, 250]], np.uint8)
    assert not confusion(truth, predicted, 3).any()
    truth[0, 1] = 1
    predicted[1, 1] = 1
    assert confusion(truth, predicted, 3).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_pixels_are_pooled_not_images_averaged() -> None:
    # Class 1 is completely wrong in a large image and completely right in a tiny one.
    pairs = [(np.ones((10, 10), np.uint8), np.zeros((10, 10), np.uint8)), (np.ones((1, 1), np.uint8),) * 2]
    result = iou(sum((confusion(*pair, 2) for pair in pairs), start=np.zeros((2, 2), np.int64)))
    assert result.iou == (0.0, 1 / 101)


def test_a_class_that_is_predicted_but_absent_scores_zero() -> None:
    assert iou(np.array([[3, 1], [0, 0]])).iou == (3 / 4, 0.0)


def test_without_counted_pixels_all_scores_are_none() -> None:
    result = iou(np.zeros((3, 3), np.int64))
    assert result.miou == 0.0 and result.iou == (None, None, None)


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (
            np.zeros((2, 3), np.uint8),
            np.zeros((3, 2), np.uint8),
            r"truth and prediction must have the same size, got \(2, 3\) and \(3, 2\)",
        ),
        (np.array([[3]], np.uint8), np.array([[0]], np.uint8), r"ids must be 0 to 2, got 3 in truth or prediction"),
        (
            np.array([[0]], np.uint8),
            np.array([[VOID]], np.uint8),
            r"ids must be 0 to 2, got 255 in truth or prediction",
        ),
    ],
)
def test_sizes_and_ids_that_do_not_match_are_rejected(truth: np.ndarray, predicted: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion(truth, predicted, 3)


@given(cases(), st.randoms(use_true_random=False))
def test_renaming_ids_renames_the_scores(case: tuple[int, list], random) -> None:  # type: ignore[no-untyped-def]
    ids, pairs = case
    order = list(range(ids))
    random.shuffle(order)
    table = np.array([*order, *[VOID] * (256 - ids)], np.uint8)
    truth, predicted = pairs[0]
    before, after = iou(confusion(truth, predicted, ids)), iou(confusion(table[truth], table[predicted], ids))
    assert tuple(after.iou[order[i]] for i in range(ids)) == before.iou
    assert after.miou == pytest.approx(before.miou)
