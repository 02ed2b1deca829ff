import dataclasses

import numpy as np
import pytest

from tagseg.evaluate.gain import Calibration, Candidate, Gain, choices, measure_gain, pooled_miou, widening
from tagseg.evaluate.iou import confusion, iou
from tagseg.settings.crf import CrfSettings
from tagseg.settings.settings import Settings


def noisy(candidates: int, images: int, seed: int, gain: float = 0.0) -> np.ndarray:
    """Return counts of candidates that are equally good but for chance, and the second better by `gain`."""
    rng = np.random.default_rng(seed)
    union = rng.integers(500, 5000, (images, 4)) * (rng.random((images, 4)) < 0.6)
    union[:, 0] = 5000
    share = rng.normal(0.6, 0.1, (images, 4)) + rng.normal(0, 0.05, (candidates, images, 4))
    share[1] += gain
    hit = (share.clip(0, 1) * union).astype(np.int64)
    return np.stack([hit, np.broadcast_to(union, hit.shape)], axis=2)


def left_out(counts: np.ndarray) -> np.ndarray:
    return np.stack([counts[best, image] for image, best in enumerate(choices(counts)[:-1])])


def test_pooled_miou_is_that_of_the_summed_confusion() -> None:
    rng = np.random.default_rng(0)
    matrices = []
    for _ in range(6):
        truth = rng.choice(np.array([0, 1, 3, 255], np.uint8), (9, 9))
        matrices.append(confusion(truth, rng.integers(0, 2, (9, 9), np.uint8), 5))
    counts = np.stack([(np.diag(m), m.sum(0) + m.sum(1) - np.diag(m)) for m in matrices])
    assert pooled_miou(counts.sum(0)) == pytest.approx(iou(sum(matrices[1:], matrices[0])).miou)
    assert pooled_miou(counts).tolist() == pytest.approx([iou(matrix).miou for matrix in matrices])


def test_pooled_miou_by_hand() -> None:
    # Class 0: 3 of 4 pixels; class 1: 0 of 2; class 2 is nowhere.
    assert pooled_miou(np.array([[3, 0, 0], [4, 2, 0]])) == pytest.approx(0.375)
    assert pooled_miou(np.zeros((2, 3), int)) == 0


def test_choices_are_made_without_the_image_they_are_judged_on() -> None:
    # The second candidate is better on image 0 alone, but so much that it wins wherever image 0 takes part.
    hits = np.array([[0, 6, 6], [10, 5, 5]])
    counts = np.stack([hits, np.full_like(hits, 10)], axis=2)[..., None]
    assert choices(counts) == [0, 1, 1, 1]
    assert choices(np.concatenate([counts[:1], counts[:1]])) == [0, 0, 0, 0]


def test_a_gain_by_hand() -> None:
    # Every image alike: whatever is drawn, the gain is 0.9 - 0.6, and nothing is left to chance.
    counts = np.array([[[6], [10]], [[9], [10]]])[:, None].repeat(5, 1)
    gain = measure_gain(left_out(counts), counts, 0)
    assert (gain.present, gain.chosen, gain.better) == pytest.approx((0.6, 0.9, 1.0))
    assert (gain.low, gain.high) == pytest.approx((0.3, 0.3)) and gain.text() == "+30.0 (+30.0 to +30.0)"


def test_the_interval_of_a_mean_is_students() -> None:
    # One other candidate and images of one size: the pooled gain is a mean, and its interval has a formula.
    differences = np.random.default_rng(1).normal(50, 100, 12).round().astype(int)
    hits = np.stack([np.full(12, 5000), 5000 + differences])
    counts = np.stack([hits, np.full_like(hits, 10_000)], axis=2)[..., None]
    gain = measure_gain(counts[1], counts, 0)
    student = 2.201 * differences.std(ddof=1) / np.sqrt(12) / 10_000  # 0.975 quantile of t with 11 degrees of freedom
    # Half a width may differ: the studentised maximum of one candidate is the bootstrap's own quantile.
    assert gain.points == pytest.approx(differences.mean() / 10_000)
    assert (gain.high - gain.low) / 2 == pytest.approx(student, rel=0.08)
    assert gain.low + gain.high == pytest.approx(2 * gain.points)


@pytest.mark.parametrize(("images", "student"), [(5, 2.776), (10, 2.262), (50, 2.010)])
def test_intervals_of_few_images_are_wider(images: int, student: float) -> None:
    assert widening(images) == pytest.approx(student / 1.960 * np.sqrt(images / (images - 1)), rel=0.003)


@pytest.mark.parametrize("images", [5, 40])
def test_the_best_of_many_equals_is_seldom_called_certain(images: int) -> None:
    certain, looks_better = 0, 0
    for seed in range(60):
        counts = noisy(15, images, seed)
        gain = measure_gain(left_out(counts), counts, seed)
        certain += choices(counts)[-1] != 0 and gain.low > 0
        looks_better += choices(counts)[-1] != 0
    # Of equals, one in forty is to pass; nearly always another than the first looks best.
    assert certain <= 5 and looks_better > 45


def test_a_large_gain_is_certain_and_the_interval_holds_it() -> None:
    found = 0
    for seed in range(10):
        counts = noisy(15, 12, seed, gain=0.1)
        gain = measure_gain(left_out(counts), counts, seed)
        assert choices(counts)[-1] == 1 and gain.low > 0 and gain.better > 0.95
        found += gain.low < 0.1 < gain.high
    assert found >= 9


def test_more_candidates_ask_for_a_surer_gain() -> None:
    counts = noisy(30, 10, 3, gain=0.05)
    few, many = (measure_gain(counts[1], counts[:n], 0) for n in (2, 30))
    assert many.points == few.points and many.high - many.low > 1.2 * (few.high - few.low)


def test_the_same_seed_gives_the_same_gain() -> None:
    counts = noisy(6, 9, 0)
    assert measure_gain(counts[1], counts, 4) == measure_gain(counts[1], counts, 4)
    assert measure_gain(counts[1], counts, 4) != measure_gain(counts[1], counts, 5)


@pytest.mark.parametrize(
    ("best", "low", "advice"),
    [
        (0, 0.01, "Keep the present settings: none of 2 candidates is better on these images."),
        (1, -0.011, "Keep the present settings: the gain of --crf.steps 0, +3.0 (-1.1 to +5.0), is not certain."),
        (1, 0.0, "Keep the present settings: the gain of --crf.steps 0, +3.0 (+0.0 to +5.0), is not certain."),
        (1, 0.012, "Change the settings: --crf.steps 0 gains +3.0 (+1.2 to +5.0)."),
    ],
)
def test_advice_is_to_keep_what_is_not_surely_worse(best: int, low: float, advice: str) -> None:
    candidates = (Candidate("cut 0.5, CRF", "", 0.5, 1), Candidate("cut 0.5, no CRF", "--crf.steps 0", 0.54, 5))
    found = Calibration(tuple("abcdef"), candidates, best, Gain(0.5, 0.53, low, 0.05, 0.9), Settings())
    assert found.advice() == advice and found.certain == advice.startswith("Change")
    assert found.to_dict()["recommended"] == ("--crf.steps 0" if found.certain else "")
    lines = found.table().splitlines()
    assert lines[0].startswith("Masks of 6 training images") and lines[-1] == advice
    assert lines[4:6] == ["| cut 0.5, no CRF | `--crf.steps 0` | 54.0 | 5 |", "| cut 0.5, CRF | (present) | 50.0 | 1 |"]
    assert dataclasses.replace(found.recommended, crf=CrfSettings()) == Settings()
