"""Settings as text: TOML files read, checked against the dataclasses, and written."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tagseg.system.untrusted import read_bytes, shown

_MAX_BYTES, _MAX_DOTS = 1 << 18, 200
_MAX_NUMBER = 2**62


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return a TOML file's tables.

    Raises:
        ValueError: when the file cannot be read or is not TOML.
    """
    try:
        text = read_bytes(Path(path), _MAX_BYTES).decode("utf-8")
        # The time that a name takes grows with the square of its parts.
        if any(line.count(".") > _MAX_DOTS for line in text.split("\n")):
            raise ValueError(f"a line with more than {_MAX_DOTS} dots")
        return tomllib.loads(text.replace("\r\n", "\n"))
    except OSError as error:
        raise ValueError(f"{path}: cannot read the settings file ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # not TOMLDecodeError alone: numbers of thousands of digits
        raise ValueError(f"{path}: not a TOML file ({error})") from error


def to_toml(values: dict[str, Any]) -> str:
    """Return plain values, and tables of them, as TOML text."""
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for section, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{section}]"] + [f"{key} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def plain(value: Any) -> Any:
    """Return a value with its tuples, at any depth of dicts, as lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def build(cls: type, values: dict[str, Any], source: str, prefix: str = "") -> Any:
    """Build a dataclass, and those it is made of, from nested plain values; what is absent keeps its default.

    Raises:
        ValueError: on an unknown name or a value of the wrong type, naming `source` and the setting.
    """
    hints = get_type_hints(cls)
    arguments = {}
    for raw, value in values.items():
        name = raw.replace("-", "_")
        if name not in hints:
            known = ", ".join(sorted(hints))
            raise ValueError(f"{source}: unknown setting {prefix}{raw}; known here: {known}")
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: {prefix}{raw} is a table of settings, got {shown(value)}")
            arguments[name] = build(hint, value, source, f"{prefix}{raw}.")  # type: ignore[arg-type]
        else:
            arguments[name] = _typed(hint, value, f"{source}: setting {prefix}{raw}")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _typed(hint: Any, value: Any, where: str) -> Any:
    choices: tuple[Any, ...] = get_args(hint)
    origin = get_origin(hint)
    if origin is Literal:
        if value not in choices or isinstance(value, bool):
            raise ValueError(f"{where}: got {shown(value)}, expected one of {', '.join(map(str, choices))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: got {shown(value)}, expected a list")
        variadic = choices[-1] is Ellipsis
        if not variadic and len(value) != len(choices):
            raise ValueError(f"{where}: got {len(value)} values, expected {len(choices)}")
        return tuple(_typed(choices[0], item, where) for item in value)
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        raise ValueError(f"{where}: got {shown(value)}, expected a number of at most {_MAX_NUMBER}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{where}: got {shown(value)}, expected {hint.__name__}")
    return value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
