"""Every setting, in a module per section. Version 0.1 had the records here, and programs may import them from here."""

from importlib import import_module
from typing import Any

_SECTIONS = ("crf", "data", "localise", "masks", "predict", "rca", "report", "segment", "settings", "train")


def __getattr__(name: str) -> Any:
    for section in _SECTIONS if name.endswith(("Settings", "Options")) else ():
        if hasattr(module := import_module(f"{__name__}.{section}"), name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
