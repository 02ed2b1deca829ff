"""tagseg turns image tags into segmentation masks.

>>> import tagseg
>>> fitted = tagseg.fit("photos/", "runs/a")  # doctest: +SKIP
>>> tagseg.predict("runs/a", "new/", "masks/")  # doctest: +SKIP

What is in `__all__` is public, and versioned as docs/public_api.md says.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Bank",
    "CrfSettings",
    "DataError",
    "DataSettings",
    "Dataset",
    "Decided",
    "Evaluation",
    "Fitted",
    "Inspection",
    "Iou",
    "LocaliseSettings",
    "MaskSettings",
    "PredictOptions",
    "Predictions",
    "Predictor",
    "RcaSettings",
    "Regions",
    "ReportSettings",
    "RunError",
    "Sample",
    "Scores",
    "SegmentSettings",
    "Settings",
    "TrainSettings",
    "aggregate",
    "attend",
    "confusion",
    "contrast",
    "dense_crf",
    "fit",
    "inspect",
    "iou",
    "kmeans",
    "load",
    "mask_from_maps",
    "mine_regions",
    "mixed_contrast",
    "pool_regions",
    "posterior",
    "predict",
    "preset",
    "read_dataset",
    "run_stage",
]

if TYPE_CHECKING:
    from tagseg.data.inspect import Inspection, inspect
    from tagseg.data.read import read_dataset
    from tagseg.data.records import DataError, Dataset, Sample
    from tagseg.masks.crf import dense_crf
    from tagseg.masks.foreign import mask_from_maps
    from tagseg.measure.evaluate import Evaluation, Scores
    from tagseg.measure.iou import Iou, confusion, iou
    from tagseg.pipeline import Fitted, fit, run_stage
    from tagseg.presets import preset
    from tagseg.rca.aggregation import aggregate, attend, posterior
    from tagseg.rca.bank import Bank, kmeans
    from tagseg.rca.contrast import contrast, mixed_contrast
    from tagseg.rca.regions import Regions, mine_regions, pool_regions
    from tagseg.run import RunError
    from tagseg.segment.decide import Decided
    from tagseg.segment.options import PredictOptions
    from tagseg.segment.predict import Predictions, Predictor, load, predict
    from tagseg.settings import Settings
    from tagseg.settings_stages import (
        CrfSettings,
        DataSettings,
        LocaliseSettings,
        MaskSettings,
        RcaSettings,
        ReportSettings,
        SegmentSettings,
        TrainSettings,
    )

_HOMES = {
    "data.inspect": ("Inspection", "inspect"),
    "data.read": ("read_dataset",),
    "data.records": ("DataError", "Dataset", "Sample"),
    "masks.crf": ("dense_crf",),
    "masks.foreign": ("mask_from_maps",),
    "measure.evaluate": ("Evaluation", "Scores"),
    "measure.iou": ("Iou", "confusion", "iou"),
    "pipeline": ("Fitted", "fit", "run_stage"),
    "presets": ("preset",),
    "rca.aggregation": ("aggregate", "attend", "posterior"),
    "rca.bank": ("Bank", "kmeans"),
    "rca.contrast": ("contrast", "mixed_contrast"),
    "rca.regions": ("Regions", "mine_regions", "pool_regions"),
    "run": ("RunError",),
    "segment.decide": ("Decided",),
    "segment.options": ("PredictOptions",),
    "segment.predict": ("Predictions", "Predictor", "load", "predict"),
    "settings": ("Settings",),
    "settings_stages": (
        *("CrfSettings", "DataSettings", "LocaliseSettings", "MaskSettings", "RcaSettings", "ReportSettings"),
        *("SegmentSettings", "TrainSettings"),
    ),
}
"""The modules where public names are defined."""


def __getattr__(name: str) -> Any:
    # Looked up when first used: torch takes seconds to import, and the command line's help does without it.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
