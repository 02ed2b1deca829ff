import dataclasses
import re
import typing

import pytest
from rich.console import Console

from tagseg.cli.main import app
from tagseg.settings.bounds import bounds, plain_type
from tagseg.settings.predict import PredictOptions
from tagseg.settings.settings import Settings

COMMANDS = sorted(name for name in app if not name.startswith("-"))


def help_of(*command: str, width: int = 80) -> str:
    console = Console(width=width, record=True, quiet=False, force_terminal=False)
    with console.capture() as captured, pytest.raises(SystemExit) as leaving:
        app([*command, "--help"], console=console)
    assert not leaving.value.code
    return captured.get()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(command: str) -> None:
    lines = help_of(*command.split()).splitlines()
    assert lines[0].startswith("Usage: tagseg") and len(lines) > 8
    assert [line for line in lines if len(line) > 80 or line != line.rstrip()] == []


def test_the_overview_lists_every_command_once_by_purpose() -> None:
    listed = {}
    for block in help_of().strip().split("\n\n"):
        title, *lines = block.split("\n")
        if lines and all(re.match(r"  [a-z-]+  ", line) for line in lines):
            listed[title] = [line.split()[0] for line in lines]
    assert listed["Start"] == ["demo", "inspect", "fit"]
    assert listed["Check and correct the masks"] == ["review", "teach", "worst", "calibrate", "atlas", "judge"]
    assert sorted(name for names in listed.values() for name in names) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_starts_with_one_sentence_and_says_what_it_writes(command: str) -> None:
    summary, paragraph = help_of(command).split("\n\n")[1:3]
    assert re.fullmatch(r"[A-Z][^.]+\.", summary), summary
    assert re.search(r"\b(Writes?|Prints?|written)\b", paragraph), paragraph


def flags_of(kind: type, prefix: str = "--") -> list[tuple[str, str]]:
    found = []
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        flag = prefix + name.replace("_", "-")
        inner = plain_type(hint)
        found += flags_of(inner, f"{flag}.") if dataclasses.is_dataclass(inner) else [(flag, bounds(hint))]
    return [(flag, bound) for flag, bound in found if bound and "character" not in bound]


@pytest.mark.parametrize(("command", "kind"), [("fit", Settings), ("predict", PredictOptions)])
def test_bounds_are_next_to_their_flags(command: str, kind: type) -> None:
    lines = help_of(command, width=100).splitlines()
    flags = flags_of(kind)
    assert len(flags) > 5
    for flag, bound in flags:
        (line,) = (line for line in lines if line.startswith(f"  {flag} "))
        assert bound in line, line


def test_defaults_and_choices_are_next_to_their_flags() -> None:
    lines = [" ".join(line.split()) for line in help_of("fit").splitlines()]
    for line in (
        "DATA required",
        "--out PATH required",
        "--until train|localise|masks|segment|evaluate|report default report",
        "--train.lr FLOAT above 0, default 0.002",
        "--train.scale FLOAT FLOAT above 0 and at most 1, default 0.35 1.0",
        "--train.freeze-batch-norm, --train.no-freeze-batch-norm default on",
        "--data.masks STR",
    ):
        assert line in lines


def test_a_stage_shows_its_own_sections_and_where_the_others_are() -> None:
    text = help_of("segment")
    assert "--segment.epochs" in text and "--seed" in text
    assert "--train." not in text and "--rca." not in text
    assert text.rstrip().endswith("Other settings: tagseg fit --help")
    assert "Other settings" not in help_of("fit")
