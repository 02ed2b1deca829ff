"""Typed records: every JSON file that tagseg writes has one definition, and only this module reads and writes it.

A record is a frozen `msgspec.Struct` whose fields are the keys of a JSON object. A file that does not fit its record,
because it is damaged or another program's, is one error: it names the file, the place in it, what was expected there
and what to do. Keys that a record does not know are ignored: a later version may write more of them.
"""

import importlib
import json
import pkgutil
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

from tagseg.errors import RunError
from tagseg.system.files import write_atomically
from tagseg.system.untrusted import read_bytes, require_regular

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""How many there are of something; without a bound JSON's numbers may have thousands of digits."""

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
"""A whole number from 1, such as a side in pixels."""

ClassId = Annotated[int, msgspec.Meta(ge=1, le=254)]
"""A class other than background (0) and void (255)."""

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""A share or probability, 0 to 1."""

Number = Annotated[float, msgspec.Meta(ge=-1e100, le=1e100)]
"""A number that can be drawn: sums and differences of two stay finite."""

Amount = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""Seconds, megabytes and the like."""

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
}
"""What msgspec calls kinds of values, and what a message calls them."""

_LONGEST_LINE = 1 << 22
"""Bytes of a line of JSON lines, more than any of ours has."""

_LONGEST = 300
"""Characters of a message that may stem from the file."""

_NOT_JSON = re.compile(rb"\\u[dD][89a-fA-F]|NaN|Infinity")

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Record(msgspec.Struct, frozen=True):
    """A JSON document of ours: the base of its kinds. What is only part of a document is a plain `msgspec.Struct`.

    bare: true where the document is the value of the record's only field, such as a list, instead of an object.
    """

    bare: ClassVar[bool] = False


R = TypeVar("R", bound=Record)


def record_kinds() -> list[type[Record]]:
    """Return every kind of record of the package, by name: all modules are imported, so that none is forgotten."""
    for module in pkgutil.walk_packages([str(Path(__file__).parents[1])], "tagseg."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, todo = set[type[Record]](), [Record]
    while todo:
        children = [kind for kind in todo.pop().__subclasses__() if kind.__module__.startswith("tagseg.")]
        found.update(children)
        todo += children
    return sorted(found, key=lambda kind: kind.__name__)


def parse_record(content: bytes, kind: type[R], lenient: bool = False) -> R:
    """Return the record that a JSON document in UTF-8 (with or without a byte order mark) holds.

    `lenient` also accepts two things that Python's writer produces and JSON does not have: text that is not Unicode, as
    file names may be, escaped as unpaired surrogates; and NaN and Infinity, which are read as null.

    Raises:
        ValueError: naming the place in the document and what was expected there.
    """
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        if lenient and _NOT_JSON.search(content):
            return msgspec.convert(json.loads(content, parse_constant=_null), kind, str_keys=True)
        if kind.bare:
            return kind(msgspec.json.decode(content, type=msgspec.structs.fields(kind)[0].type))
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise ValueError(_in_words(str(error))) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not text in UTF-8") from error
    # Before 0.20 msgspec's errors are not ValueErrors.
    except (msgspec.MsgspecError, ValueError) as error:
        # msgspec calls a document with half a surrogate pair truncated.
        half = _SURROGATE.search(content) and "surrogate" if "malformed" not in str(error) else ""
        reason = "it has text that is not Unicode, an unpaired surrogate" if half else f"it is not JSON: {error}"
        raise ValueError(reason[:_LONGEST]) from error


def convert_record(values: object, kind: type[R]) -> R:
    """Return the record that plain values, read from JSON, stand for.

    Raises:
        ValueError: naming the place in the values and what was expected there.
    """
    try:
        return msgspec.convert(values, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise ValueError(_in_words(str(error))) from error


def record_values(record: Record) -> dict[str, Any]:
    """Return a record as plain values, as JSON has them."""
    values: dict[str, Any] = msgspec.to_builtins(record, str_keys=True)
    return values


def read_record(path: Path, kind: type[R], remedy: str, error: type[ValueError] = RunError) -> R:
    """Return the record that a JSON file holds.

    Args:
        path: the file.
        kind: the record's class.
        remedy: what the user can do when the file is damaged; ends the message.
        error: what is raised, RunError or DataError.

    Raises:
        RunError: (or `error`) when the file is missing or damaged, or holds something else.
    """
    try:
        return parse_record(read_bytes(path), kind)
    except FileNotFoundError as cause:
        raise error(f"{path}: missing; {remedy}") from cause
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror or cause}); {remedy}") from cause
    except ValueError as cause:
        raise error(f"{path}: damaged ({cause}); {remedy}") from cause


def read_lines(
    path: Path,
    kind: type[R],
    remedy: str,
    error: type[ValueError] = RunError,
    lenient: bool = False,
    skip: int = 0,
) -> Iterator[R]:
    """Yield the records of a file of JSON lines; an incomplete last line, which a killed process may leave, is dropped.

    Args:
        path, kind, remedy, error: as for `read_record`.
        lenient: as for `parse_record`.
        skip: lines at the beginning that are not records of this kind.

    Raises:
        RunError: (or `error`) when the file is missing or a line of it is damaged; the message has the line's number.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
                if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                    return
                if number > skip:
                    yield _parse_line(path, number, line, kind, remedy, error, lenient)
    except FileNotFoundError as cause:
        raise error(f"{path}: missing; {remedy}") from cause
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror or cause}); {remedy}") from cause


def _parse_line(
    path: Path, number: int, line: bytes, kind: type[R], remedy: str, error: type[ValueError], lenient: bool
) -> R:
    try:
        return parse_record(line, kind, lenient)
    except ValueError as cause:
        raise error(f"{path}, line {number}: damaged ({cause}); {remedy}") from cause


def record_text(record: Record) -> str:
    """Return a record as the text of its JSON file: indented, but with one line per entry of a list of records.

    Raises:
        ValueError: when a number is not finite, which JSON cannot say.
    """
    if record.bare:
        return json_text(_only_value(record), 1) + "\n"
    return "{" + ",".join(_members(record)) + "\n}\n"


def record_line(record: Record) -> str:
    """Return a record as a line of a file of JSON lines.

    Raises:
        ValueError: when a number is not finite, which JSON cannot say.
    """
    return json_text(_only_value(record) if record.bare else msgspec.to_builtins(record, str_keys=True)) + "\n"


def write_record(path: Path, record: Record) -> None:
    """Write a record to its JSON file, in one atomic step.

    Raises:
        WriteError: when the disk is full or the folder cannot be written to.
    """
    write_atomically(path, record_text(record))


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Write records to a file of JSON lines, in one atomic step.

    Raises:
        WriteError: when the disk is full or the folder cannot be written to.
    """
    write_atomically(path, "".join(map(record_line, records)))


def json_text(value: object, indent: int | None = None) -> str:
    """Return plain values as JSON.

    Raises:
        ValueError: when a number is not finite, which JSON cannot say.
    """
    # Not msgspec's writer: it turns numbers that are not finite into null, unasked.
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def ascii_json(value: object) -> bytes:
    """Return plain values as ASCII JSON. Checksums are computed from it: the bytes are the same in every version."""
    return json.dumps(value).encode()


def metadata_json(value: object) -> str:
    """Return plain values as JSON for metadata, where NaN and Infinity may stand in the sums of a broken training."""
    return json.dumps(value, ensure_ascii=False)


def read_json(path: Path) -> Any:
    """Return what a JSON file of another program (in UTF-8) holds.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is not JSON, or nested too deeply.
    """
    return parse_json(read_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text of another program (as bytes: in UTF-8, with or without a byte order mark) says.

    Raises:
        ValueError: when it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _members(record: Record) -> Iterator[str]:
    brief = record.__struct_config__.omit_defaults
    for field in msgspec.structs.fields(record):
        value = getattr(record, field.name)
        if brief and value == (
            field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        ):
            continue
        if isinstance(value, list | tuple) and value and isinstance(value[0], msgspec.Struct):
            # A million entries, indented, would fill the memory.
            rows = ",\n  ".join(json_text(msgspec.to_builtins(one, str_keys=True)) for one in value)
            yield f"\n {json_text(field.encode_name)}: [\n  {rows}\n ]"
        else:
            yield json_text({field.encode_name: msgspec.to_builtins(value, str_keys=True)}, 1)[1:-2]


def _only_value(record: Record) -> object:
    return msgspec.to_builtins(getattr(record, record.__struct_fields__[0]), str_keys=True)


def _in_words(message: str) -> str:
    """What msgspec says of a value that does not fit, with the place first and in the words of our messages."""
    said, _, place = message.rpartition(" - at ")
    said, place = (said, place.replace("`", "")) if said else (message, "")
    place = place.replace("$.", "").replace("$[", "[").replace("$", "the document").replace("key in", "a key of")
    said = re.sub(r"`(\w+)`", lambda found: _KINDS.get(found[1], found[1]), said)
    said = said.replace("Expected", "expected").replace(", got", ", found").replace("Invalid enum", "unknown")
    missing = re.fullmatch(r"Object missing required field (\w+)", said)
    if missing:
        return f"{place}.{missing[1]} is missing".removeprefix("the document").removeprefix(".")
    return f"{place}: {said}"[:_LONGEST] if place else said[:_LONGEST]


def _null(name: str) -> None:
    return None
