"""Mistakes in a command that are found before it imports PyTorch, which takes seconds."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from tagseg.errors import DataError
from tagseg.export.folder import require_replaceable
from tagseg.run.folder import Run, network_folder
from tagseg.run.hub import is_hub_address, parse_hub_address
from tagseg.run.lock import hold_lock
from tagseg.run.open import check_places
from tagseg.settings.bounds import bounds, check_value, plain_type
from tagseg.settings.predict import PredictOptions
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings, find_weights
from tagseg.system.changes import is_unsettled

_DEVICE = re.compile(r"(auto|cpu|mps)|(cuda|xpu|hpu|xla|mtia|privateuseone)(:[0-9]+)?")

_FILES = {
    "masks": "a folder of true masks named like training images",
    "image": "an image",
    "corrected": "a COCO, Label Studio, CVAT or LabelMe export, or PNGs",
    "import_file": "a file that --export wrote",
    "labels": "pseudo, truth, or a folder of PNGs named like the training images",
    "photos": "the images given to tagseg predict",
    "data": "the data folder",
}
"""Arguments that name files or folders which must exist, and what is expected there."""

_WORDS = {"labels": ("pseudo", "truth")}
"""Words that these arguments may also be."""

_SETTLING = ("review", "worst", "judge", "teach", "predict", "export", "export_model", "push", "labelstudio")
"""Functions of commands that read a run before they hold its lock, if they ever do."""

OWN_BACKBONES = ("resnet38",)
"""Backbones that timm does not have."""


def check_early(function: Callable[..., object], given: Mapping[str, Any]) -> None:
    """Raise a ValueError for a command's arguments (by name) that are wrong: folders, files, numbers, devices, names.

    A mistake that only PyTorch, timm or the command's work can find is left to them.
    """
    name = function.__name__
    _check_numbers(function, given)
    for value in given.values():
        if isinstance(value, Settings) and not given.get("check"):  # bench --check looks at the data alone
            _check_settings(value)
        elif isinstance(value, PredictOptions):
            check_device(value.device)
    check_device(given.get("device", "auto"))
    place = given.get("run", given.get("where"))
    if name in _SETTLING and place is not None and is_unsettled(Path(place)):
        with hold_lock(Path(place)):  # finishes what a killed command left
            pass
    if name == "fit":
        check_places(Run(given["out"]), given["data"].resolve())
    elif name == "judge" and not Run(given["where"]).manifest_file.exists():
        check_places(Run(given["out"]), given["where"].resolve())
    elif name == "predict" and is_hub_address(given["run"]):
        parse_hub_address(given["run"])
    elif name in ("predict", "push"):
        network_folder(Path(given["run"]))
    elif name != "doctor" and "run" in given and not given.get("data"):
        Run(given["run"]).manifest()
    if name not in ("fit", "inspect"):  # reading the data says more
        _check_files(name, given)
    if name == "predict":
        _check_images(given["images"])
    if name in ("export", "import_"):
        require_replaceable(given["out"], given.get("force", False))


def check_device(name: str) -> None:
    """Raise a ValueError unless a device may be called so."""
    if not _DEVICE.fullmatch(name):
        raise ValueError(f"--device must be auto, cpu, cuda, cuda:1 or mps, got {name}{_meant(name, ('cuda', 'cpu'))}")


def _check_settings(settings: Settings) -> None:
    check_device(settings.device)
    find_weights(settings.train.weights)
    find_weights(settings.segment.weights)
    backbone = settings.train.backbone.split(".")[0]
    if backbone != TrainSettings().backbone and backbone not in OWN_BACKBONES:
        known = _backbones()
        if known and backbone not in known and ":" not in settings.train.backbone:
            raise ValueError(
                f"--train.backbone must be a model of timm, got {settings.train.backbone}{_meant(backbone, known)}"
            )


def _backbones() -> Sequence[str]:
    """The names of timm's models, read from its source: importing it takes seconds."""
    spec = find_spec("timm")
    folders = [] if spec is None else [Path(place) / "models" for place in spec.submodule_search_locations or ()]
    texts = (file.read_text("utf-8", "replace") for folder in folders for file in folder.glob("*.py"))
    return [name for text in texts for name in re.findall(r"^def ([a-z]\w+)\(\s*pretrained", text, re.MULTILINE)]


def _check_numbers(function: Callable[..., object], given: Mapping[str, Any]) -> None:
    """Check the arguments whose bounds are in their annotations; records of settings check themselves."""
    for name, hint in get_type_hints(function, include_extras=True).items():
        if plain_type(hint) is int and name in given and bounds(hint):
            check_value(_flag(name, hint), given[name], hint)


def _flag(name: str, hint: Any) -> str:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    named = [mark.name for mark in marks if isinstance(mark, Parameter) and mark.name]
    return next(iter(named[0])) if named else f"--{name.replace('_', '-')}"


def _check_files(command: str, given: Mapping[str, Any]) -> None:
    for name in _FILES.keys() & given.keys():
        values = given[name] if isinstance(given[name], tuple) else (given[name],)
        for value in values:
            # bench says how to get the data
            if command == "bench" or value is None or str(value) in ("", *_WORDS.get(name, ())):
                continue
            if not Path(value).exists():
                raise DataError(f"{value}: no such file or folder, expected {_FILES[name]}")

    maps = given.get("maps_from")
    if maps is not None and not Path(maps).is_dir():
        raise DataError(
            f"--maps-from {maps}: not a folder; expected a folder of .npz or .npy maps named like the images"
        )


def _check_images(items: Sequence[str]) -> None:
    for item in items:
        if "://" not in item and not re.search(r"[*?\[{]", item) and not Path(item).exists():
            raise DataError(f"{item}: no such image, folder or pattern")


def _meant(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def bound_arguments(function: Callable[..., object], given: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, those at their defaults included."""
    found = inspect.signature(function).bind(*given, **named)
    found.apply_defaults()
    return found.arguments
