"""How `--help` looks: flags with their bounds and defaults, grouped, in 80 columns."""

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from cyclopts import Parameter
from cyclopts.help import HelpEntry, HelpPanel
from rich.console import Console, ConsoleOptions
from rich.text import Text

from tagseg.settings.bounds import bounds, plain_type

_WIDEST = 100
"""Lines get no longer than this, however wide the terminal is."""


@dataclass(frozen=True)
class HelpPage:
    """The help of a command, as cyclopts calls for it: the description first, then each group of flags or commands.

    function: the command, whose annotations hold the bounds of its flags. sections: the sections of settings to show;
    None shows all.
    """

    function: Callable[..., object] | None = None
    sections: tuple[str, ...] | None = None

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print how the command is called."""
        _print(console, Text(f"Usage: {_plain(usage).rstrip()}"))

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Print the description: paragraphs are filled, examples stay as they are."""
        for paragraph in _plain(description).rstrip().split("\n\n"):
            example = paragraph.startswith("    ")
            _print(console, Text(f"\n{paragraph if example else _filled(paragraph, _width(console))}"))

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a group of commands or flags under its title."""
        if not panel.entries or not self._shows(panel.entries[0]):
            return
        _print(console, Text(f"\n{panel.title}", style="bold"))
        if panel.format == "command":
            _print_commands(console, panel.entries)
        else:
            limits = {} if self.function is None else dict(_limits(self.function))
            for entry in panel.entries:
                _print_flag(console, entry, limits)

    def _shows(self, entry: HelpEntry) -> bool:
        section, dot, _ = (entry.names or ("",))[0].removeprefix("--").partition(".")
        return not dot or self.sections is None or section in self.sections


def _print_commands(console: Console, entries: list[HelpEntry]) -> None:
    names = [", ".join((*entry.names, *entry.shorts)) for entry in entries]
    indent = max(map(len, names)) + 4
    for name, entry in zip(names, entries, strict=True):
        first, *rest = textwrap.wrap(_plain(entry.description), _width(console) - indent) or [""]
        _print(console, Text.assemble("  ", (name.ljust(indent - 2), "cyan"), first))
        for line in rest:
            _print(console, Text(" " * indent + line))


def _print_flag(console: Console, entry: HelpEntry, limits: dict[str, str]) -> None:
    """Print a flag on a line with what it takes and its default, and what it does below."""
    width = _width(console)
    left = _names(entry)
    right = ", ".join(_remarks(entry, limits))
    gap = width - 2 - len(left) - len(right)
    right = "" if not right else " " * gap + right if gap >= 2 else f"\n{right.rjust(width)}"
    _print(console, Text.assemble("  ", (left, "cyan"), (right, "dim")))
    text = _filled(_plain(entry.description), width - 6)
    _print(console, Text(textwrap.indent(text, "      ")))


def _names(entry: HelpEntry) -> str:
    if entry.positional_label:
        return entry.positional_label
    takes = "|".join(entry.choices) if entry.choices else entry.metavar or ""
    names = ", ".join((*entry.positive_names, *entry.positive_shorts, *entry.negative_names))
    return f"{names} {takes}".rstrip()


def _remarks(entry: HelpEntry, limits: dict[str, str]) -> Iterator[str]:
    """Yield what is said of a flag's value: required or not, its bounds, its default."""
    if entry.required:
        yield "required"
    if bound := limits.get(entry.names[0] if entry.names else ""):
        yield bound
    if (entry.metavar or "").endswith("...") and not entry.positional_label:
        yield "with commas" if entry.metavar in ("INT...", "FLOAT...") else "repeatable"
    default = entry.default
    if default in ("True", "False"):
        if entry.negative_names:
            yield "default on" if default == "True" else "default off"
    elif default not in (None, "None", '""', "()"):
        yield f"default {default.strip('()').replace(',', '')}" if default.startswith("(") else f"default {default}"


def _limits(function: Callable[..., object]) -> Iterator[tuple[str, str]]:
    """Yield the flags of a command with their bounds, those of its settings included."""
    for name, hint in get_type_hints(function, include_extras=True).items():
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        spread = any(isinstance(mark, Parameter) and mark.name == ("*",) for mark in marks)
        yield from _limits_of(hint, "--" if spread else f"--{_dashed(name)}")


def _limits_of(hint: Any, flag: str) -> Iterator[tuple[str, str]]:
    kind = plain_type(hint)
    if not is_dataclass(kind):
        yield flag, bounds(hint) if kind is not str else ""
        return
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        yield from _limits_of(hints[field.name], f"{flag}{'.' if flag != '--' else ''}{_dashed(field.name)}")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _plain(renderable: Any) -> str:
    """The text in what cyclopts hands over."""
    text = getattr(renderable, "primary_renderable", renderable)
    return text.plain if isinstance(text, Text) else str(text or "")


def _filled(text: str, width: int) -> str:
    return textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)


def _width(console: Console) -> int:
    return min(console.width, _WIDEST)


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)
