"""Turn maps into label probabilities and decide which pixels are unsure; this needs no ground truth."""

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from tagseg.settings.masks import MaskSettings

LIMIT = 1e-4
"""Smallest distance of a probability from 0 and 1, so that later evidence can still change the label."""


def label_probabilities(
    maps: Float32[np.ndarray, "k h w"], settings: MaskSettings, cuts: tuple[float, ...]
) -> Float32[np.ndarray, "1+k h w"]:
    """Return the probabilities of background and of the maps' classes at every pixel; they sum to 1.

    `maps` are shares (0..1), and `cuts` are the values of `background_cut` for each map. `settings.background` selects
    the rule:

    - `rest`: the maps are probabilities, and background has the remaining probability.
    - `threshold`, `otsu`: the odds of a class against background are the odds of its map divided by those of its cut,
      so class and background are equally likely where the map equals the cut.
    - `power`: a class scores its map, background `(1 - highest map) ^ power` (Ahn and Kwak 2018, section 3.1), and the
      scores are divided by their sum.
    """
    shares = np.clip(maps, LIMIT, 1 - LIMIT)
    highest = shares.max(0, keepdims=True, initial=LIMIT)
    if settings.background == "rest":
        background = np.maximum(1 - shares.sum(0, keepdims=True), LIMIT)
    elif settings.background == "power":
        background = np.maximum((1 - highest) ** np.float32(settings.power), LIMIT)
    else:
        limits = np.clip(np.array(cuts, np.float32), LIMIT, 1 - LIMIT)[:, None, None]
        shares, background = shares / (1 - shares) * ((1 - limits) / limits), np.ones_like(highest)
    scores = np.concatenate([background, shares])
    probabilities: Float32[np.ndarray, "1+k h w"] = scores / scores.sum(0)
    return probabilities


def background_cut(values: UInt8[np.ndarray, "h w"], settings: MaskSettings) -> float:
    """Return the share of its peak at which a map (0..255 = 0..peak) makes its class as likely as background.

    `otsu`: the cut with the largest variance between the two sides of the map's own histogram (Otsu 1979). `threshold`:
    a constant. The other rules need no cut. `auto` must be resolved first (see `Settings.mask_rule`).
    """
    assert settings.background != "auto", "see Settings.mask_rule"
    return otsu(values) if settings.background == "otsu" else settings.threshold


def otsu(values: UInt8[np.ndarray, "..."]) -> float:
    """Return Otsu's threshold of 8-bit values as a share of 255; 0.5 when all values are equal."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
        between = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0)
    if between.max() == 0:
        return 0.5
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float((best.mean() + 0.5) / 255)


def shift_background(probabilities: Float32[np.ndarray, "l h w"], threshold: float) -> Float32[np.ndarray, "l h w"]:
    """Return the probabilities with the odds of background scaled so that a class wins if its share of the two
    probabilities was above `threshold` (0..1); 0.5 changes nothing."""
    if threshold == 0.5:
        return probabilities
    moved = probabilities.copy()
    moved[0] *= np.float32(threshold / (1 - threshold))
    moved /= moved.sum(0)
    return moved


def with_saliency(
    probabilities: Float32[np.ndarray, "l h w"], saliency: UInt8[np.ndarray, "h w"]
) -> Float32[np.ndarray, "l h w"]:
    """Return the probabilities with background taken from a saliency map (0 background, 255 salient), as in RCA and
    EPS; the classes share the rest in the same proportions as before."""
    salient = np.clip(saliency.astype(np.float32) / 255, LIMIT, 1 - LIMIT)
    classes = probabilities[1:]
    if not len(classes):
        return probabilities
    shared: Float32[np.ndarray, "l h w"] = np.concatenate([(1 - salient)[None], salient * classes / classes.sum(0)])
    return shared


def agreement(
    before: Float32[np.ndarray, "l h w"], after: Float32[np.ndarray, "l h w"]
) -> Float32[np.ndarray, "l h w"]:
    """Return the certainty of each label at every pixel: the geometric mean of its probabilities before and after
    refinement, which is high only where both are.

    A tag that has no pixels after refinement must still be somewhere in the image: where its probability before
    refinement is above half its peak, the certainty of every label is 0, unless this is half of the image or more,
    which says nothing about its position.
    """
    sure: Float32[np.ndarray, "l h w"] = np.sqrt(before * after)
    shown = np.unique(after.argmax(0))
    for label in range(1, len(before)):
        if label not in shown:
            likeliest = before[label] > before[label].max() / 2
            if likeliest.mean() < 0.5:
                sure[:, likeliest] = 0
    return sure


def decide_labels(
    probabilities: Float[np.ndarray, "l h w"],
    sure: Float[np.ndarray, "l h w"],
    classes: tuple[int, ...],
    unsure: float,
) -> tuple[UInt8[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Return the class id of every pixel (0 background, then `classes` in order), and which pixels are unsure: those
    where the certainty of the label (`sure`) is below 0.5 + `unsure`.

    A single label (no tags) is always certain.
    """
    labels = probabilities.argmax(0)
    ids = np.array((0, *classes), np.uint8)[labels]
    return ids, np.take_along_axis(sure, labels[None], 0)[0] < (0.5 + unsure if classes else 0.0)
