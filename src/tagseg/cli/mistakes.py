"""Mistakes in how a command is written, in words: what it must be, what was found, what to do."""

import difflib
from typing import Any, Literal, get_args, get_origin

from cyclopts import Argument
from cyclopts.exceptions import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from tagseg.settings.bounds import NOUNS, element_type


def mistake_text(error: CycloptsError) -> str:
    """Return what is wrong with the words of a command; those that have no text here keep that of cyclopts."""
    command = " ".join(("tagseg", *(error.command_chain or ())))
    look = f"`{command} --help` lists "
    name = error.argument.name if error.argument is not None else ""
    match error:
        case UnknownCommandError():
            word = (error.unused_tokens or [""])[0]
            names = [name for name in (error.app or {}) if not name.startswith("-")]
            return f"{word}: {command} has no such command{_likely(word, names)}; {look}all"
        case UnknownOptionError():
            flag = error.token.keyword or error.token.value
            flags = [one for argument in error.argument_collection for one in argument.names if one.startswith("--")]
            return f"{flag}: {command} has no such flag{_likely(flag, flags)}; {look}all"
        case UnusedCliTokensError():
            words = " ".join(error.unused_tokens or [])
            return (
                f"{command}: expected nothing more, found {words}; write lists with commas (0.5,1,2), quote names that "
                f"have spaces; {look}what it takes"
            )
        case RepeatArgumentError():
            return f"{error.token.keyword or name} must be given once, found it again with {error.token.value}"
        case MissingArgumentError() if name.startswith("-") and name in (error.root_input_tokens or []):
            return f"{name} must be followed by its value, found none; {look}the values that it may have"
        case MissingArgumentError():
            return f"{command}: {name} must be given, found none; {look}what it is"
        case CoercionError() if error.token is not None and (noun := _noun(error.target_type, error.argument)):
            return f"{name} must be {noun}, got {error.token.value}"
    return str(error)


def _noun(kind: Any, argument: Argument | None) -> str:
    """Return what a value of a type is, in words; empty if there are none."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    element, listed = element_type(argument.hint) if argument is not None else (kind, False)
    if listed:
        return f"{NOUNS[element][1]}, separated by commas" if element in (int, float) else ""
    return NOUNS[kind][0] if kind in (int, float, bool) else ""


def _likely(word: str, names: list[str]) -> str:
    found = difflib.get_close_matches(word, names, 1, 0.7)
    return f" (did you mean {found[0]}?)" if found else ""
