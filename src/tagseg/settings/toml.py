"""Read settings from TOML text, check them against their dataclasses, and write them."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin

from tagseg.settings.bounds import MAX_NUMBER, check_value, plain_type, type_hints
from tagseg.system.untrusted import read_bytes, shown

_MAX_BYTES, _MAX_DOTS = 1 << 18, 200


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return a TOML file's tables.

    Raises:
        ValueError: when the file is unreadable or not TOML.
    """
    return parse_toml(toml_bytes(path), str(path))


def toml_bytes(path: str | Path) -> bytes:
    """Return the content of a TOML file; raise ValueError when it cannot be read."""
    try:
        return read_bytes(Path(path), _MAX_BYTES)
    except OSError as error:
        raise ValueError(f"{path}: cannot read the settings file ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}: not a TOML file ({error})") from error


def parse_toml(content: bytes, source: str) -> dict[str, Any]:
    """Return the tables of TOML text; raise ValueError, which names `source`, when it is not TOML."""
    try:
        text = content.decode("utf-8")
        # The time to parse a dotted name grows with the square of its length.
        if any(line.count(".") > _MAX_DOTS for line in text.split("\n")):
            raise ValueError(f"a line with more than {_MAX_DOTS} dots")
        return tomllib.loads(text.replace("\r\n", "\n"))
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: also numbers with thousands of digits
        raise ValueError(f"{source}: not a TOML file ({error})") from error


def to_toml(values: dict[str, Any]) -> str:
    """Return plain values and tables of plain values as TOML text."""
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for section, table in values.items():
        if isinstance(table, dict):
            lines += ["", f"[{section}]"] + [f"{key} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def plain(value: Any) -> Any:
    """Return a value with its tuples as lists, also inside nested dicts."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def build(cls: type, values: dict[str, Any], source: str, prefix: str = "") -> Any:
    """Build a dataclass, and the dataclasses in it, from nested plain values; absent fields keep their default.

    Raises:
        ValueError: on an unknown name or a wrong value, naming `source` and the setting.
    """
    hints = type_hints(cls)
    arguments = {}
    for raw, value in values.items():
        name = raw.replace("-", "_")
        if name not in hints:
            raise ValueError(
                f"{source}: unknown setting {prefix}{raw}; known here: {', '.join(sorted(hints))}. Correct it, or "
                "leave it out if it is of another version of tagseg"
            )
        kind = plain_type(hints[name])
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: setting {prefix}{raw} must be a table of settings, got {shown(value)}")
            arguments[name] = build(kind, value, source, f"{prefix}{raw}.")  # type: ignore[arg-type]
        else:
            arguments[name] = _converted(value, hints[name])
            check_value(f"{source}: setting {prefix}{raw}", arguments[name], hints[name])
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _converted(value: Any, hint: Any) -> Any:
    """A value read from TOML in the type of its setting, where TOML has another one: tuples and whole floats."""
    base = plain_type(hint)
    if get_origin(base) is tuple and isinstance(value, list):
        return tuple(_converted(item, get_args(base)[0]) for item in value)
    if base is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER:
        return float(value)
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
