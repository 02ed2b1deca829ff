"""Where a map ends and background begins, and which pixels are unsure; no ground truth, no saliency."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from tagseg.data.records import VOID
from tagseg.settings import MaskSettings


def cut(values: UInt8[np.ndarray, "h w"], settings: MaskSettings) -> float:
    """Return the share of its peak below which a map (0..255 = 0..peak) is background.

    `otsu`: the cut with the largest variance between the two sides of the map's own histogram (Otsu 1979).
    `threshold`: a constant. `power`: where the map equals the background score (1 - map) ^ power (Ahn and Kwak 2018).
    `auto` must have been resolved (see `Settings.mask_rule`).
    """
    if settings.background == "threshold":
        return settings.threshold
    if settings.background == "power":
        shares = np.linspace(0, 1, 1001)
        return float(shares[np.argmax(shares >= (1 - shares) ** settings.power)])
    assert settings.background == "otsu", settings.background
    return otsu(values)


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


def decide(
    maps: Float[np.ndarray, "k h w"], classes: tuple[int, ...], cuts: list[float], unsure: float
) -> tuple[UInt8[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Return the class id of every pixel (0 background) and which pixels are unsure.

    A pixel belongs to the class whose map (0..1) lies highest above its cut, to background when none does. It is unsure
    within `unsure` of that border, or where the second class comes within `unsure` of the first.
    """
    if not classes:
        return np.zeros(maps.shape[1:], np.uint8), np.zeros(maps.shape[1:], bool)
    margins = np.sort(maps - np.array(cuts, np.float32)[:, None, None], axis=0)
    best = margins[-1]
    ids = np.array(classes, np.uint8)[np.argmax(maps - np.array(cuts, np.float32)[:, None, None], axis=0)]
    doubtful = np.abs(best) < unsure
    if len(classes) > 1:
        doubtful |= (margins[-2] > 0) & (best - margins[-2] < unsure)
    return np.where(best > 0, ids, 0).astype(np.uint8), doubtful


def with_void(ids: UInt8[np.ndarray, "h w"], unsure: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Return a mask whose unsure pixels are 255."""
    return np.where(unsure, VOID, ids).astype(np.uint8)
