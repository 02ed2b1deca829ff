"""The mIoU of several packages on the same masks: absent classes, void pixels, and pooling over images.

    python -m benchmarks.quality.metrics_agree

The masks are drawn: five classes on three images. In `plain` every image shows every class; in `absent` no truth and no
prediction has class 4; in `predicted only` some pixels are predicted as it; in `one image` a class is in one image
alone; in `void` a third of the true pixels is 255. mmsegmentation does not install without its own build of
PyTorch, so its rule is written here from its documentation (IoUMetric: void pixels are dropped, intersections and
unions are summed over images, the mean leaves classes without a union out). cleanlab has scores of labels but no IoU
of masks.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from benchmarks.harness import record

from tagseg.data.records import VOID
from tagseg.evaluate.iou import confusion, iou

IDS = 5

Pair = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Score every case by every rule."""
    warnings.simplefilter("ignore")
    cases = draw_cases()
    figures = {
        rule: {name: score(function, pairs) for name, pairs in cases.items()} for rule, function in RULES.items()
    }
    rows = [f"| mIoU, % | {' | '.join(cases)} |", "|---|" + "---:|" * len(cases)]
    rows += [f"| {rule} | {' | '.join(row.values())} |" for rule, row in figures.items()]
    print(record("metrics_agree", [], figures, "\n".join(rows)))


def draw_cases() -> dict[str, list[Pair]]:
    """Return the pairs of true and predicted masks of every case."""
    generator = np.random.default_rng(0)

    def pair(classes: Sequence[int], weights: Sequence[float]) -> Pair:
        truth = generator.choice(classes, (12, 16), p=np.divide(weights, sum(weights))).repeat(4, 0).repeat(4, 1)
        predicted = np.where(generator.random(truth.shape) < 0.8, truth, generator.choice(classes, truth.shape))
        return truth.astype(np.uint8), predicted.astype(np.uint8)

    plain = [pair(range(5), weights) for weights in ((8, 4, 2, 1, 1), (1, 1, 2, 4, 8), (8, 1, 1, 1, 1))]
    absent = [pair(range(4), (8, 4, 2, 1)) for _ in range(3)]
    only = [(truth, predicted.copy()) for truth, predicted in absent]
    only[0][1][:3] = 4
    one = [pair(range(5), (4, 4, 4, 2, 2)), *(pair(range(4), (4, 4, 4, 2)) for _ in range(2))]
    void = [
        (np.where(generator.random(truth.shape) < 1 / 3, VOID, truth).astype(np.uint8), seen) for truth, seen in plain
    ]
    return {"plain": plain, "absent": absent, "predicted only": only, "one image": one, "void": void}


def score(rule: Callable[[list[Pair]], float], pairs: list[Pair]) -> str:
    """Return the mIoU in per cent, or the error."""
    try:
        return f"{100 * rule(pairs):.2f}"
    except (IndexError, RuntimeError, ValueError) as error:
        return f"error: {str(error).splitlines()[0][:60]}"


def tagseg(pairs: list[Pair]) -> float:
    """Return our mIoU."""
    return iou(np.sum([confusion(truth, predicted, IDS) for truth, predicted in pairs], axis=0)).miou


def mmsegmentation(pairs: list[Pair]) -> float:
    """Return the mIoU by mmsegmentation's rule."""
    hits, unions = np.zeros(IDS), np.zeros(IDS)
    for truth, predicted in pairs:
        kept = truth != VOID
        true, seen = truth[kept], predicted[kept]
        hit = np.histogram(seen[seen == true], IDS, (0, IDS - 1))[0]
        hits += hit
        unions += sum(np.histogram(one, IDS, (0, IDS - 1))[0] for one in (true, seen)) - hit
    return float(np.nanmean(hits / unions))


def jaccard_index(pairs: list[Pair]) -> float:
    """Return the macro average of torchmetrics' MulticlassJaccardIndex."""
    from torchmetrics.classification import MulticlassJaccardIndex

    metric = MulticlassJaccardIndex(IDS, average="macro", ignore_index=VOID)
    for truth, predicted in pairs:
        metric.update(torch.from_numpy(predicted).long(), torch.from_numpy(truth).long())
    return float(metric.compute())


def mean_iou(pairs: list[Pair]) -> float:
    """Return torchmetrics' segmentation.MeanIoU, which takes no void."""
    from torchmetrics.segmentation import MeanIoU

    metric = MeanIoU(IDS, input_format="index")
    for truth, predicted in pairs:
        metric.update(torch.from_numpy(predicted[None]).long(), torch.from_numpy(truth[None]).long())
    return float(metric.compute())


def smp(reduction: str) -> Callable[[list[Pair]], float]:
    """Return segmentation-models-pytorch's IoU with one of its reductions."""

    def rule(pairs: list[Pair]) -> float:
        from segmentation_models_pytorch.metrics import get_stats, iou_score

        truth, predicted = (torch.from_numpy(np.stack(one)).long() for one in zip(*pairs, strict=True))
        stats = get_stats(predicted, truth, mode="multiclass", num_classes=IDS, ignore_index=VOID)
        return float(iou_score(*stats, reduction=reduction))

    return rule


def scikit_learn(pairs: list[Pair]) -> float:
    """Return scikit-learn's jaccard_score of all pixels that are not void."""
    from sklearn.metrics import jaccard_score

    kept = [(truth[truth != VOID], predicted[truth != VOID]) for truth, predicted in pairs]
    true, seen = (np.concatenate(one) for one in zip(*kept, strict=True))
    return float(jaccard_score(true, seen, average="macro"))


def scikit_learn_labels(pairs: list[Pair]) -> float:
    """Return the same with the list of classes, as one passes it to have the same order always."""
    from sklearn.metrics import jaccard_score

    kept = [(truth[truth != VOID], predicted[truth != VOID]) for truth, predicted in pairs]
    true, seen = (np.concatenate(one) for one in zip(*kept, strict=True))
    return float(jaccard_score(true, seen, average="macro", labels=range(IDS), zero_division=0))


RULES: dict[str, Callable[[list[Pair]], float]] = {
    "tagseg": tagseg,
    "mmsegmentation (its rule)": mmsegmentation,
    "torchmetrics 1.9 `MulticlassJaccardIndex`, macro": jaccard_index,
    "torchmetrics 1.9 `segmentation.MeanIoU`": mean_iou,
    "segmentation-models-pytorch 0.6 `iou_score`, macro": smp("macro"),
    "segmentation-models-pytorch 0.6 `iou_score`, macro-imagewise": smp("macro-imagewise"),
    "segmentation-models-pytorch 0.6 `iou_score`, micro": smp("micro"),
    "scikit-learn 1.9 `jaccard_score`, macro": scikit_learn,
    "scikit-learn 1.9 `jaccard_score`, macro, `labels` given": scikit_learn_labels,
}


if __name__ == "__main__":
    main()
