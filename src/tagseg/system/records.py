"""Typed records: every JSON file that tagseg writes has one definition, and only this module reads and writes it.

A record is a frozen `msgspec.Struct` whose fields are the keys of a JSON object. A file that does not fit its record,
because it is damaged or another program's, is one error: it names the file, the place in it, what was expected there
and what to do. Keys that a record does not know are ignored: a later version may write more of them.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from tagseg.errors import RunError
from tagseg.system.files import write_atomically
from tagseg.system.untrusted import read_bytes

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""How many there are of something; without a bound JSON's numbers may have thousands of digits."""

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
"""A whole number from 1, such as a side in pixels."""

ClassId = Annotated[int, msgspec.Meta(ge=1, le=254)]
"""A class other than background (0) and void (255)."""

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""A share or probability, 0 to 1."""

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

_LONGEST = 300
"""Characters of a message that may stem from the file."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Record(msgspec.Struct, frozen=True):
    """A JSON document of ours: the base of its kinds. What is only part of a document is a plain `msgspec.Struct`."""


R = TypeVar("R", bound=Record)


def parse_record(content: bytes, kind: type[R], any_text: bool = False) -> R:
    """Return the record that a JSON document in UTF-8 (with or without a byte order mark) holds.

    `any_text` allows text that is not Unicode, as file names may be: JSON escapes it as unpaired surrogates.

    Raises:
        ValueError: naming the place in the document and what was expected there.
    """
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        if any_text and _SURROGATE.search(content):
            return msgspec.convert(json.loads(content, parse_constant=_refuse_constant), kind, str_keys=True)
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
    path: Path, kind: type[R], remedy: str, error: type[ValueError] = RunError, any_text: bool = False
) -> Iterator[R]:
    """Yield the records of a file of JSON lines. A last line without an end, as a killed process leaves it, is dropped.

    Args:
        path, kind, remedy, error: as for `read_record`.
        any_text: as for `parse_record`.

    Raises:
        RunError: (or `error`) when the file is missing or a line of it is damaged; the message has the line's number.
    """
    try:
        whole = read_bytes(path).rpartition(b"\n")[0]
    except FileNotFoundError as cause:
        raise error(f"{path}: missing; {remedy}") from cause
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror or cause}); {remedy}") from cause
    for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
        try:
            yield parse_record(line, kind, any_text)
        except ValueError as cause:
            raise error(f"{path}, line {number}: damaged ({cause}); {remedy}") from cause


def record_text(record: Record) -> str:
    """Return a record as the text of its JSON file: indented, but with one line per entry of a list of records.

    Raises:
        ValueError: when a number is not finite, which JSON cannot say.
    """
    return "{" + ",".join(_members(record)) + "\n}\n"


def record_line(record: Record) -> str:
    """Return a record as a line of a file of JSON lines.

    Raises:
        ValueError: when a number is not finite, which JSON cannot say.
    """
    return json_text(msgspec.to_builtins(record, str_keys=True)) + "\n"


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


def _in_words(message: str) -> str:
    """What msgspec says of a value that does not fit, with the place first and in the words of our messages."""
    said, _, place = message.rpartition(" - at ")
    said, place = (said, place.replace("`", "")) if said else (message, "")
    place = place.replace("$.", "").replace("$", "the whole").replace("key in", "a key of")
    said = re.sub(r"`(\w+)`", lambda found: _KINDS.get(found[1], found[1]), said)
    said = said.replace("Expected", "expected").replace(", got", ", found").replace("Invalid enum", "unknown")
    missing = re.fullmatch(r"Object missing required field (\w+)", said)
    if missing:
        return f"{place}.{missing[1]} is missing".removeprefix("the whole").removeprefix(".")
    return f"{place}: {said}"[:_LONGEST] if place else said[:_LONGEST]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
