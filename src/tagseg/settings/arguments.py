"""Arguments of Python functions that are wrong, answered in words with the right name."""

import dataclasses
import difflib
from collections.abc import Mapping

from tagseg.settings.bounds import plain_type, type_hints
from tagseg.settings.settings import Settings

_PARAMETERS = ("data", "out", "settings", "force", "track", "processes")


def refuse_unknown(given: Mapping[str, object]) -> None:
    """Raise a TypeError for arguments of `fit` that it does not have; settings are named with the way to give them.

    >>> refuse_unknown({"epochs": 3})
    Traceback (most recent call last):
    ...
    TypeError: fit() has no argument epochs. It is a setting, train.epochs or segment.epochs: \
settings=tagseg.Settings.from_dict({"train": {"epochs": 3}})
    """
    for name, value in given.items():
        raise TypeError(f"fit() has no argument {name}. {_right_name(name, value)}")


def refuse_other(settings: object) -> None:
    """Raise a TypeError unless `settings` are settings or None."""
    if settings is None or isinstance(settings, Settings):
        return
    if isinstance(settings, str):
        raise TypeError(
            f"settings must be tagseg.Settings, got the text {settings!r}: settings=tagseg.preset({settings!r})"
        )
    if isinstance(settings, dict):
        raise TypeError("settings must be tagseg.Settings, got a dict: settings=tagseg.Settings.from_dict(...)")
    raise TypeError(f"settings must be tagseg.Settings, got {type(settings).__name__}")


def _right_name(name: str, value: object) -> str:
    if name in ("quality", "preset"):
        return f"Give it as settings=tagseg.preset({value!r})"
    found, general = [], []
    for field, hint in type_hints(Settings).items():
        kind = plain_type(hint)
        if dataclasses.is_dataclass(kind):
            found += [(field, inner.name) for inner in dataclasses.fields(kind)]
        else:
            general.append(field)
    if name in general:
        return f"It is a setting: settings=tagseg.Settings.from_dict({{{name!r}: {value!r}}})".replace("'", '"')
    sections = [section for section, inner in found if inner == name]
    if sections:
        names = " or ".join(f"{section}.{name}" for section in sections)
        nested = f'{{"{sections[0]}": {{"{name}": {value!r}}}}}'
        return f"It is a setting, {names}: settings=tagseg.Settings.from_dict({nested})"
    known = {inner: f"the setting {section}.{inner}" for section, inner in found}
    known |= {field: f"the setting {field}" for field in general} | {one: one for one in _PARAMETERS}
    close = difflib.get_close_matches(name, known, 1)
    meant = f"Did you mean {known[close[0]]}? " if close else ""
    return f"{meant}It has {', '.join(_PARAMETERS)}"
