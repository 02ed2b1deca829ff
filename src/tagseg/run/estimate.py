"""How long the stages of a run take on this machine, from what was measured on another."""

import time
from collections.abc import Mapping

from tagseg.run.stages import Stage, needed_stages
from tagseg.settings.settings import Settings
from tagseg.system.process import cores

FEATURES_S, HEADS_S, MAPS_S, JUDGE_S = 1.9, 0.045, 1.6, 2.0
"""CPU seconds of one thread with MobileNetV2 on the reference machine (docs/quality.md, "What it costs"): of the
features and of maps with masks per megapixel, of tag head and memory bank per image; the scores of masks are four
passes of the segmentation network per megapixel."""

CROP_S, TUNED_CROP_S = 0.075, 0.12
"""CPU seconds per crop of a step of the segmentation network, and of a classification network that is trained, for
crops of CROP pixels."""

CROP = 224
"""Pixels per side of those crops."""

DEFAULT_STEPS = 500
"""Steps of the training of a classification network whose length is left to the number of images."""

IMAGE_BYTES, BYTES_PER_PIXEL = 11_776, 16.2
"""Of cached features with the default settings, after images are reduced to features.max-side."""

JUDGED_SIDE = 512
"""Larger images are reduced to this long side before their masks are judged, in pixels."""

REPORT_S = 10.0
REFERENCE_S = 0.00093
"""CPU seconds that `_probe` takes on a machine like that one, roughly."""


def stage_seconds(settings: Settings, sizes: Mapping[tuple[int, int], int], speed: float) -> dict[Stage, float]:
    """Return the seconds that each stage of a run takes, roughly.

    Args:
        settings: the run's settings.
        sizes: number of training images by (height, width) in pixels.
        speed: how many CPU seconds of the reference machine pass in a second here (see `machine_speed`).
    """
    segment, images = settings.segment, sum(sizes.values())
    whole, small = megapixels(sizes), megapixels(sizes, settings.features.max_side)
    steps = segment.epochs * images / (segment.batch * segment.accumulate) if segment.epochs else segment.steps
    if segment.rounds > 1:
        steps += (segment.rounds - 1) * (segment.teacher_steps or steps)
    crop_s = CROP_S * (segment.crop / CROP) ** 2
    train, frozen = settings.train, settings.train.method == "frozen"
    crops = train.epochs * images or DEFAULT_STEPS * train.batch
    tuned = crops * TUNED_CROP_S * (train.crop / CROP) ** 2
    cpu: dict[Stage, float] = {
        "train": FEATURES_S * small + HEADS_S * images if frozen else tuned,
        "localise": 0.5 * MAPS_S * small + (0 if frozen else FEATURES_S * whole),
        "masks": 0.5 * MAPS_S * whole,
        "segment": steps * segment.batch * segment.accumulate * crop_s + (segment.rounds - 1) * MAPS_S * whole,
        "evaluate": JUDGE_S * megapixels(sizes, JUDGED_SIDE),
        "report": REPORT_S,
    }
    return {stage: cpu[stage] / speed for stage in needed_stages(settings)}


def megapixels(sizes: Mapping[tuple[int, int], int], side: int = 0) -> float:
    """Return the pixels of images by (height, width), in millions; larger ones are reduced to a long side (0: never).

    >>> megapixels({(1000, 500): 2}), megapixels({(1000, 500): 2}, 500)
    (1.0, 0.25)
    """
    shares = ((size, count, min(side / max(size), 1) if side else 1) for size, count in sizes.items())
    return sum(count * size[0] * size[1] * share**2 for size, count, share in shares) / 1e6


def features_bytes(settings: Settings, sizes: Mapping[tuple[int, int], int]) -> int | None:
    """Return how many bytes the cached features of images take; None if the settings are not the default ones, whose
    size is known without PyTorch."""
    standard = Settings()
    if (settings.features, settings.train.backbone, settings.train.stride) != (
        standard.features, standard.train.backbone, standard.train.stride
    ):  # fmt: skip
        return None
    pixels = 1e6 * megapixels(sizes, settings.features.max_side)
    return round(IMAGE_BYTES * sum(sizes.values()) + BYTES_PER_PIXEL * pixels)


def machine_speed() -> float:
    """Return how many CPU seconds of the reference machine pass in a second on all cores of this one, roughly."""
    return cores() * REFERENCE_S / max(min(_probe() for _ in range(20)), 1e-5)


def _probe() -> float:
    """Return the CPU seconds of some arithmetic in one thread: of several, waiting ones would count, too."""
    import numpy as np  # here, because a command that is refused takes as long as its imports

    numbers = np.linspace(0, 9, 100_000)
    started = time.process_time()
    np.sin(numbers).sum()
    np.exp(numbers).sum()
    return time.process_time() - started


def in_words(seconds: float) -> str:
    """Return a duration as people say it.

    >>> in_words(40.0), in_words(70.0), in_words(1500.0), in_words(9000.0)
    ('less than a minute', 'about 1 minute', 'about 25 minutes', 'about 2.5 hours')
    """
    minutes = round(seconds / 60)
    if seconds < 50:
        return "less than a minute"
    if minutes < 100:
        return f"about {max(minutes, 1)} minute{'s' if minutes > 1 else ''}"
    return f"about {seconds / 3600:.2g} hours"
