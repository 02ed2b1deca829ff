"""The command line itself: its overview, shared flags, and how settings files and run folders fill the other flags."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from cyclopts import App, ArgumentCollection, Group, Parameter
from cyclopts.config import Dict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tagseg._version import __version__
from tagseg.cli.early import bound_arguments, check_early
from tagseg.cli.help import HelpPage
from tagseg.settings.bounds import NOUNS, AtLeastOne, element_type
from tagseg.settings.presets import DEFAULT_QUALITY, preset_values, quality_values, without_effect_when_frozen
from tagseg.settings.settings import Rival, Settings
from tagseg.settings.toml import read_toml
from tagseg.system.untrusted import printable

out = Console()
err = Console(stderr=True)

OVERVIEW = """tagseg turns image tags into segmentation masks.

Give it photographs with tags. It writes a mask for each photograph, a segmentation network for new images, and a
report.

    tagseg demo                              watch it work, in minutes
    tagseg inspect photos/                   check your data
    tagseg fit photos/ --out runs/a          masks, network, report
    tagseg review runs/a                     look through the masks
    tagseg predict runs/a new/ --out masks/  masks for new images

Every command explains itself: tagseg fit --help. With -v it also says what its parts do: losses, learning rates.
"""


def _fill_flags(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill settings that have no flag from --settings FILE, then --preset, then --quality, then the run folder, and
    check them. In a new run folder, if none of these is given, the default quality fills them."""
    _refuse_sections(arguments)
    _check_written_numbers(arguments)
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    places = []
    if "--settings" in given:
        places.append((given["--settings"], read_toml(given["--settings"])))
    if "--preset" in given:
        places.append((f"preset {given['--preset']}", preset_values(given["--preset"])))
    if "--quality" in given:
        places.append((f"quality {given['--quality']}", _quality(given["--quality"], given, places)))
    if commands == ("bench",) and "PROTOCOL" in given:
        places.append(("the paper's settings", _paper_values(given)))
    run = given.get("RUN") or given.get("--out")
    if run and "--seed" in {argument.name for argument in arguments}:
        saved = Path(run) / "settings.toml"
        if saved.exists():
            places.append((str(saved), read_toml(saved)))
    trained = given.get("--maps", "cam") not in ("cam", *get_args(Rival)) or "--train.method" in given
    if not places and commands == ("fit",) and not trained:
        places.append((f"quality {DEFAULT_QUALITY}", _quality(DEFAULT_QUALITY, given, places)))
    _refuse_without_effect(given, places)
    for place, values in places:
        Settings.from_dict(values, place)  # our message names the file and the setting
        # Nested under the command's name, or cyclopts drops sections that are named like commands: train, masks, ...
        for command in reversed(commands):
            values = {command: values}
        Dict(values, source=place)(app, commands, arguments)


def _quality(name: str, given: dict[str, str], places: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the settings of a quality; masks of another tool are learned from once, because self-training needs
    maps."""
    values = quality_values(name)
    if "--segment.labels" in given or any(one.get("segment", {}).get("labels") for _, one in places):
        return values | {"segment": {key: value for key, value in values["segment"].items() if key != "rounds"}}
    return values


def _refuse_sections(arguments: ArgumentCollection) -> None:
    """Raise a ValueError for the name of a section that is given as a flag: cyclopts would take the value for that of
    the section's first setting."""
    for argument in arguments:
        if argument.tokens and argument.name.startswith("--") and dataclasses.is_dataclass(argument.hint):
            names = [one.name for one in arguments if one.name.startswith(f"{argument.name}.")]
            raise ValueError(
                f"{argument.name} is a group of settings: expected one of its flags, {names[0]} to {names[-1]}, got "
                f"{argument.name} {argument.tokens[0].value}; tagseg fit --help lists them"
            )


def _check_written_numbers(arguments: ArgumentCollection) -> None:
    """Take lists of numbers apart at their commas, and raise a ValueError for a fraction where a whole number is
    expected: cyclopts would round it."""
    for argument in arguments:
        number, listed = element_type(argument.hint)
        if listed and number in (int, float) and argument.parameter.converter is None:
            parts = [(token, part) for token in argument.tokens for part in token.value.split(",")]
            argument.tokens[:] = [token.evolve(value=part, index=i) for i, (token, part) in enumerate(parts)]
        if number is int:
            for token in argument.tokens:
                if any(map(_is_fraction, token.value.split(","))):
                    raise ValueError(
                        f"{token.keyword or argument.name} must be {NOUNS[int][listed]}, got {token.value}"
                    )


def _is_fraction(text: str) -> bool:
    """Tell whether a text is a number, but not written as a whole one."""
    if re.fullmatch(r"\s*[+-]?[0-9_]+\s*", text):
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _refuse_without_effect(given: dict[str, str], places: list[tuple[str, dict[str, Any]]]) -> None:
    """Raise a ValueError for flags that only the finetuned classification network reads when it is frozen."""
    methods = [(place, values["train"]["method"]) for place, values in places if "method" in values.get("train", {})]
    place, method = (methods or [("", "finetuned")])[0]
    if given.get("--train.method", method) != "frozen":
        return
    names = {flag: flag.removeprefix("--").replace("-", "_") for flag in given}
    if idle := [flag for flag, name in names.items() if without_effect_when_frozen(name)]:
        source = f", which is so by {place}" if "--train.method" not in given else ""
        raise ValueError(
            f"{', '.join(idle)} must be left out when train.method is frozen{source}: the backbone does not learn, so "
            "it would change nothing. Leave it out, or add --train.method finetuned"
        )


def _paper_values(given: dict[str, str]) -> dict[str, Any]:
    """The paper's settings for the protocol that `tagseg bench` was given; background comes from saliency maps if the
    data has them."""
    from tagseg.data.voc import voc_root
    from tagseg.studies.bench.protocols import paper_values

    root = Path(given.get("--data", ""))
    saliency = "--data.saliency" in given or ((voc_root(root) or root) / "saliency").is_dir()
    method, backbone = given.get("--method", "oaa"), given.get("--backbone", "vgg16")
    return paper_values(given["PROTOCOL"], method, backbone, saliency)


app = App(
    name="tagseg",
    help=OVERVIEW,
    version=__version__,
    config=_fill_flags,
    default_parameter=Parameter(negative_iterable=()),
    group_parameters=Group("Options", sort_key=0),
    help_format="plaintext",
    help_formatter=HelpPage(),
    suppress_keyboard_interrupt=False,  # `main` says how to continue
)

START = Group("Start", sort_key=1)
CHECK = Group("Check and correct the masks", sort_key=2)
USE = Group("Use the network", sort_key=3)
EXCHANGE = Group("Exchange masks with other tools", sort_key=4)
STAGE_COMMANDS = Group("Stages of fit, one at a time", sort_key=5)
RESEARCH = Group("Research", sort_key=6)
MAINTENANCE = Group("Maintenance", sort_key=7)
_ABOUT = Group("About tagseg", sort_key=8)
for _flag in ("--help", "--version"):
    app[_flag].group = _ABOUT

Command = TypeVar("Command", bound=Callable[..., None])


def command(
    group: Group, order: int, name: str | None = None, sections: tuple[str, ...] | None = None
) -> Callable[[Command], Command]:
    """Make a function a command.

    Args:
        group, order: where the overview lists it.
        name: its name, by default the function's.
        sections: the sections of settings in its help, by default all; the others work all the same.
    """

    def register(function: Command) -> Command:
        @functools.wraps(function)
        def checked(*given: Any, **named: Any) -> None:
            check_early(function, bound_arguments(function, given, named))
            function(*given, **named)

        more = None if sections is None else "Other settings: tagseg fit --help"
        app.command(
            checked,
            name=name,
            group=group,
            sort_key=order,
            help_formatter=HelpPage(function, sections),
            help_epilogue=more,
        )
        return function

    return register


Options = Annotated[Settings, Parameter(name="*", group=Group("Settings of all stages", sort_key=1))]
SettingsFile = Annotated[Path | None, Parameter(name="--settings", help="TOML file of settings. Flags override it.")]
Force = Annotated[bool, Parameter(negative=(), help="Redo what is done, and everything that depends on it.")]
Processes = Annotated[
    AtLeastOne,
    Parameter(help="Processes on this machine that train the networks, each on a GPU of its own if there are any."),
]
RunFolder = Annotated[Path, Parameter(name="RUN", help="Run folder made by tagseg fit.")]


def say(line: str) -> None:
    """Print a line as it is, without markup."""
    out.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def say_tables(text: str) -> None:
    """Print text with tables in Markdown: in a terminal as tables that fit into it, elsewhere as it is."""
    if not out.is_terminal:
        say(text)
        return
    for is_table, lines in itertools.groupby(text.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            out.print(_table(*map(_cells, lines)))
        else:
            out.print(printable("\n".join(lines)), markup=False, highlight=False)


def _table(names: list[Text], marks: list[Text], *rows: list[Text]) -> Table:
    table = Table()
    for name, mark in zip(names, marks, strict=True):
        table.add_column(name, justify="right" if mark.plain.endswith(":") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _cells(line: str) -> list[Text]:
    """Return the cells of a row in Markdown as they are to be seen."""
    inner = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
    bold = [cell.startswith("**") and cell.endswith("**") for cell in inner]
    return [
        Text(printable(cell.strip("*" if is_bold else "`")), style="bold" if is_bold else "")
        for cell, is_bold in zip(inner, bold, strict=True)
    ]


def complain(line: str, style: str = "yellow") -> None:
    """Print a line to standard error, without markup."""
    err.print(printable(line), markup=False, highlight=False, style=style, soft_wrap=True)


def name_text(name: str) -> Text:
    """Return a class name as it is: rich reads markup in plain strings."""
    return Text(printable(name))
