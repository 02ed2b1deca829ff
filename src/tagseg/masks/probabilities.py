"""From maps to the probability of every label, and which pixels are unsure; no ground truth needed."""

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from tagseg.settings.masks import MaskSettings

LIMIT = 1e-4
"""Probabilities stay this far from 0 and 1, so that later evidence can still overrule them."""


def label_probabilities(
    maps: Float32[np.ndarray, "k h w"], settings: MaskSettings, cuts: tuple[float, ...]
) -> Float32[np.ndarray, "1+k h w"]:
    """Return the probabilities of background and the maps' classes at every pixel; they sum to 1.

    `maps` are shares (0..1) and `cuts` what `background_cut` says of each. By `settings.background`:

    - `rest`: maps are probabilities already, and background has what they leave over.
    - `threshold`, `otsu`: the odds of a class against background are those of its map, divided by those of the map's
      cut, so that class and background are equally likely where the map equals its cut.
    - `power`: a class has its map and background `(1 - highest map) ^ power` (Ahn and Kwak 2018, section 3.1), divided
      by their sum.
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
    """Return the share of its peak at which a map (0..255 = 0..peak) is as likely its class as background.

    `otsu`: the cut with the largest variance between the two sides of the map's own histogram (Otsu 1979);
    `threshold`: a constant. Other rules need no cut. `auto` must have been resolved (see `Settings.mask_rule`).
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
    """Return the probabilities with the odds of background moved so that a class beats it from a probability of
    `threshold` (0..1) among the two on; 0.5 changes nothing."""
    if threshold == 0.5:
        return probabilities
    moved = probabilities.copy()
    moved[0] *= np.float32(threshold / (1 - threshold))
    moved /= moved.sum(0)
    return moved


def with_saliency(
    probabilities: Float32[np.ndarray, "l h w"], saliency: UInt8[np.ndarray, "h w"]
) -> Float32[np.ndarray, "l h w"]:
    """Return the probabilities with background taken from a saliency map (0 background, 255 salient), as RCA and EPS
    do; the classes share the rest as they did before."""
    salient = np.clip(saliency.astype(np.float32) / 255, LIMIT, 1 - LIMIT)
    classes = probabilities[1:]
    if not len(classes):
        return probabilities
    shared: Float32[np.ndarray, "l h w"] = np.concatenate([(1 - salient)[None], salient * classes / classes.sum(0)])
    return shared


def agreement(
    before: Float32[np.ndarray, "l h w"], after: Float32[np.ndarray, "l h w"]
) -> Float32[np.ndarray, "l h w"]:
    """Return how sure each label would be at every pixel: the geometric mean of its probability by the maps alone and
    of the one after refinement, which is high only where both are.

    A tag that no pixel went to must be somewhere all the same: where its probability by the maps is above half its
    peak, nothing is sure (0), unless that is most of the image, which tells nothing.
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
    whose label is not surer than 0.5 by `unsure`.

    One label alone (no tags) is always sure.
    """
    labels = probabilities.argmax(0)
    ids = np.array((0, *classes), np.uint8)[labels]
    return ids, np.take_along_axis(sure, labels[None], 0)[0] < (0.5 + unsure if classes else 0.0)
