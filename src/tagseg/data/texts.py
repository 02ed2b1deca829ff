"""Read small text files as people have them: in UTF-8, UTF-16 with a byte order mark, XML in its declared encoding."""

import codecs
import re
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

from tagseg.errors import DataError
from tagseg.system.records import parse_json
from tagseg.system.untrusted import read_bytes, shown

_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._:-]{1,40})["'][^>]*\?>""")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(file: Path) -> str:
    """Return the content of a text file in UTF-8, or in UTF-16 if it starts with a byte order mark.

    Raises:
        DataError: when it cannot be read.
    """
    try:
        content = read_bytes(file)
        return content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}), expected UTF-8 text") from error


def read_json_text(file: Path) -> object:
    """Return the value in a JSON file.

    Raises:
        DataError: when it cannot be read, or is not valid JSON.
    """
    try:
        return parse_json(read_text(file))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error})") from error


def read_xml(file: Path) -> ElementTree.Element:
    """Return the root of an XML file, which is decoded as it declares.

    Raises:
        DataError: when it cannot be read, is not valid XML, or has a document type or an entity.
    """
    try:
        content = read_bytes(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}), expected XML") from error
    declared = _DECLARED.match(content.removeprefix(codecs.BOM_UTF8))
    encoding = "utf-16" if content.startswith(_UTF16) else "utf-8-sig"
    if declared and encoding != "utf-16":
        encoding = declared[1].decode("ascii")
        if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
            encoding = "utf-8-sig"
    try:
        text = content.decode(encoding)
    except (LookupError, UnicodeError) as error:
        hint = "" if declared else "; XML in another encoding must declare it: <?xml version='1.0' encoding='...'?>"
        raise DataError(f"{file}: cannot be read as {encoding} ({error}){hint}") from error
    # The parser expands entities, which only a document type can define. UTF-16, which has zeros, could hide one.
    if any(mark in text for mark in ("<!DOCTYPE", "<!ENTITY", "\0")):
        raise DataError(f"{file}: has a document type or an entity, expected plain XML without them")
    try:
        return ElementTree.fromstring(re.sub(r"\A\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise DataError(f"{file}: not valid XML ({error})") from error


def names_in(file: Path) -> tuple[str, ...]:
    """Return the names in a text file with one name per line, in order; empty lines are skipped.

    Raises:
        DataError: when the file cannot be read, or lists a name twice.
    """
    names: dict[str, None] = {}
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        name = unicodedata.normalize("NFC", line.strip())
        if name in names:
            raise DataError(f"{file}, row {number}: class {shown(name)} is listed twice")
        if name:
            names[name] = None
    return tuple(names)
