"""tagseg turns image tags into segmentation masks.

>>> import tagseg
>>> fitted = tagseg.fit("photos/", "runs/a")  # doctest: +SKIP
>>> tagseg.predict("runs/a", "new/", "masks/")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["PredictOptions", "Settings", "fit", "inspect", "load", "predict", "read_dataset", "run_stage"]

if TYPE_CHECKING:
    from tagseg.data.inspect import inspect
    from tagseg.data.read import read_dataset
    from tagseg.pipeline import fit, run_stage
    from tagseg.segment.options import PredictOptions
    from tagseg.segment.predict import load, predict
    from tagseg.settings import Settings

_HOMES = {
    "PredictOptions": "tagseg.segment.options",
    "Settings": "tagseg.settings",
    "fit": "tagseg.pipeline",
    "inspect": "tagseg.data.inspect",
    "load": "tagseg.segment.predict",
    "predict": "tagseg.segment.predict",
    "read_dataset": "tagseg.data.read",
    "run_stage": "tagseg.pipeline",
}


def __getattr__(name: str) -> Any:
    # Looked up when first used: torch takes seconds to import, and the command line's help does without it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
