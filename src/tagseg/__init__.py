"""tagseg turns image tags into segmentation masks.

>>> import tagseg
>>> fitted = tagseg.fit("photos/", "runs/a")  # doctest: +SKIP
>>> tagseg.predict("runs/a", "new/", "masks/")  # doctest: +SKIP

What is in `__all__` is public, and versioned as docs/public_api.md says.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tagseg._version import __version__ as __version__

__all__ = [
    "Bank",
    "ClusterView",
    "CrfSettings",
    "DataError",
    "DataSettings",
    "Dataset",
    "Decided",
    "Evaluation",
    "FeatureSettings",
    "Fitted",
    "Inspection",
    "Iou",
    "Lessons",
    "LocaliseSettings",
    "MaskSettings",
    "PredictOptions",
    "Prediction",
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
    "Taught",
    "TrainSettings",
    "aggregate",
    "attend",
    "confusion",
    "contrast",
    "dense_crf",
    "fit",
    "fit_until",
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
    "teach",
]

if TYPE_CHECKING:
    from tagseg.crf.dense_crf import dense_crf
    from tagseg.data.inspect import Inspection, inspect
    from tagseg.data.read import read_dataset
    from tagseg.data.records import Dataset, Sample
    from tagseg.errors import DataError, RunError
    from tagseg.evaluate.iou import Iou, confusion, iou
    from tagseg.evaluate.scores import Evaluation, Scores
    from tagseg.masks.foreign_maps import mask_from_maps
    from tagseg.pipeline import Fitted, fit, fit_until, run_stage
    from tagseg.prediction.predict import Predictions, predict
    from tagseg.rca.aggregation import aggregate, attend, posterior
    from tagseg.rca.bank import Bank
    from tagseg.rca.contrast import contrast, mixed_contrast
    from tagseg.rca.kmeans import kmeans
    from tagseg.rca.regions import Regions, mine_regions, pool_regions
    from tagseg.segment.label_pixels import Decided
    from tagseg.segment.load import load
    from tagseg.segment.prediction import Prediction
    from tagseg.segment.predictor import Predictor
    from tagseg.settings.crf import CrfSettings
    from tagseg.settings.data import DataSettings
    from tagseg.settings.features import FeatureSettings
    from tagseg.settings.localise import LocaliseSettings
    from tagseg.settings.masks import MaskSettings
    from tagseg.settings.predict import PredictOptions
    from tagseg.settings.presets import preset
    from tagseg.settings.rca import RcaSettings
    from tagseg.settings.report import ReportSettings
    from tagseg.settings.segment import SegmentSettings
    from tagseg.settings.settings import Settings
    from tagseg.settings.train import TrainSettings
    from tagseg.teaching.lesson import Taught
    from tagseg.teaching.teach import ClusterView, Lessons, teach

_HOMES = {
    "crf.dense_crf": ("dense_crf",),
    "data.inspect": ("Inspection", "inspect"),
    "data.read": ("read_dataset",),
    "data.records": ("Dataset", "Sample"),
    "errors": ("DataError", "RunError"),
    "evaluate.scores": ("Evaluation", "Scores"),
    "evaluate.iou": ("Iou", "confusion", "iou"),
    "masks.foreign_maps": ("mask_from_maps",),
    "pipeline": ("Fitted", "fit", "fit_until", "run_stage"),
    "prediction.predict": ("Predictions", "predict"),
    "rca.aggregation": ("aggregate", "attend", "posterior"),
    "rca.bank": ("Bank",),
    "rca.contrast": ("contrast", "mixed_contrast"),
    "rca.kmeans": ("kmeans",),
    "rca.regions": ("Regions", "mine_regions", "pool_regions"),
    "segment.label_pixels": ("Decided",),
    "segment.prediction": ("Prediction",),
    "segment.load": ("load",),
    "segment.predictor": ("Predictor",),
    "settings.crf": ("CrfSettings",),
    "settings.data": ("DataSettings",),
    "settings.features": ("FeatureSettings",),
    "settings.localise": ("LocaliseSettings",),
    "settings.masks": ("MaskSettings",),
    "settings.predict": ("PredictOptions",),
    "settings.presets": ("preset",),
    "settings.rca": ("RcaSettings",),
    "settings.report": ("ReportSettings",),
    "settings.segment": ("SegmentSettings",),
    "settings.settings": ("Settings",),
    "settings.train": ("TrainSettings",),
    "teaching.lesson": ("Taught",),
    "teaching.teach": ("ClusterView", "Lessons", "teach"),
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
