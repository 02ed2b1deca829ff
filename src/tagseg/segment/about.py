"""Check the description in a saved segmentation network before anything is built from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from tagseg.data.records import MAX_CLASSES
from tagseg.errors import RunError
from tagseg.networks.segmenters import NetworkName
from tagseg.system.untrusted import read_json, shown

_MAX_SCALE, _MAX_SIDE = 32, 8192
"""Largest image scale and largest side of a scaled image in pixels: with more, a file could fill the memory."""


def _are_classes(value: Any) -> bool:
    names = isinstance(value, list) and all(isinstance(name, str) and 0 < len(name) <= 1000 for name in value)
    return names and 2 <= len(value) <= MAX_CLASSES + 1 and value[0] == "background"


def _are_scales(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 100 and all(map(_is_scale, value))


def _is_scale(value: Any) -> bool:
    return _is_number(value) and 0.01 <= value <= _MAX_SCALE


def _is_number(value: Any, kinds: tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "classes": (f"background and 1 to {MAX_CLASSES} other names", _are_classes),
    "network": (" or ".join(get_args(NetworkName)), lambda value: value in get_args(NetworkName)),
    "encoder": ("the name of a timm model", lambda value: isinstance(value, str) and 0 < len(value) <= 200),
    "stride": ("8, 16 or 32", lambda value: _is_number(value, (int,)) and value in (8, 16, 32)),
    "predict_scales": (f"a list of numbers from 0.01 to {_MAX_SCALE}", _are_scales),
    "predict_flip": ("true or false", lambda value: isinstance(value, bool)),
    "max_side": ("a number of pixels", lambda value: _is_number(value, (int,)) and value >= 1),
}


def check_about(about: object, source: Path) -> None:
    """Check a network's description, which may come from an untrusted source.

    Its `network` may be missing: networks saved before there was a choice are DeepLabV3+.

    Raises:
        RunError: naming `source`, what was found and what was expected.
    """
    if not isinstance(about, dict) or not about:
        raise RunError(f"{source}: has no description of a segmentation network of tagseg")
    for name, (expected, holds) in _EXPECTED.items():
        if name not in about and name == "network":
            continue
        if name not in about:
            raise RunError(f"{source}: not a segmentation network of tagseg: {name} is missing, expected {expected}")
        if not holds(about[name]):
            raise RunError(f"{source}: {name} is {shown(about[name])}, expected {expected}")
    side = max(about["predict_scales"]) * about["max_side"]
    if side > _MAX_SIDE:
        raise RunError(
            f"{source}: max_side {shown(about['max_side'])} at scale {max(about['predict_scales']):g} is too large, "
            f"expected at most {_MAX_SIDE} pixels"
        )


def check_twin(file: Path, about: dict[str, Any]) -> None:
    """Check that network.json, if it exists, agrees with the description inside network.safetensors.

    The description inside the weights is used. A file that differs was edited without effect, or belongs to other
    weights.

    Raises:
        RunError: naming the file and what differs.
    """
    try:
        twin = read_json(file)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: damaged ({error})") from error
    if not isinstance(twin, dict):
        raise RunError(f"{file}: damaged (not a JSON object)")
    for name, value in about.items():
        if name not in twin or twin[name] != value:
            found = shown(twin[name]) if name in twin else "missing"
            raise RunError(
                f"{file}: {name} is {found}, but network.safetensors in the same folder has {shown(value)}, "
                "which is used"
            )
