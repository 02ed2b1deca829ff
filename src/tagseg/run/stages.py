"""The stages of a run in order, and the files and folders that each command leaves in the run folder."""

from typing import Literal, get_args

from tagseg.settings.settings import Settings

Stage = Literal["train", "localise", "masks", "segment", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)

ROUNDS = "self_training"
"""The folder of the rounds of self-training."""

OUTPUTS: dict[Stage, tuple[str, ...]] = {
    "train": ("network", "data.json"),
    "localise": ("maps",),
    "masks": ("masks", "masks_without_void"),
    "segment": ("segmenter", ROUNDS, "labels"),
    "evaluate": ("predictions", "evaluation.json", "evaluation.md"),
    "report": ("report.html",),
}
"""The files and folders that each stage writes in the run folder."""

Other = Literal["calibration", "atlas", "full_supervision", "quality", "ablation", "bench", "features"]
OTHERS: dict[Other, tuple[str, ...]] = {
    "calibration": ("calibration.json", "calibration.md"),
    "atlas": ("atlas.html",),
    "full_supervision": ("full_supervision",),
    "quality": ("quality.jsonl",),
    "ablation": ("ablation_score.json",),
    "bench": ("bench",),
    "features": ("features",),
}
"""The files and folders that commands other than the stages write in the run folder."""


def needed_stages(settings: Settings) -> tuple[Stage, ...]:
    """Return the stages of a run in order.

    A run that learns from masks of another tool makes no maps and no pseudo-masks; one that takes its maps from another
    method trains no classification network.
    """
    if settings.segment.labels:
        return STAGES[STAGES.index("segment") :]
    return STAGES[STAGES.index("localise") :] if settings.localise.maps_from else STAGES
