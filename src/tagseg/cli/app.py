"""The command line itself: its help, its shared flags, and how settings files and run folders fill the other flags."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, Group, Parameter
from cyclopts.config import Dict
from rich.console import Console

from tagseg._version import __version__
from tagseg.settings.presets import preset_values
from tagseg.settings.settings import Settings
from tagseg.settings.toml import read_toml

out = Console()
err = Console(stderr=True)

HELP = """tagseg turns image tags into segmentation masks.

Give it photographs with tags; get pixel masks for them, a segmentation network for new images, and a report.

Start here:

    tagseg demo                        see it work in minutes
    tagseg inspect photos/             is my data as it should be?
    tagseg fit photos/ --out runs/a    masks, network, report
    tagseg review runs/a               look through the masks, worst first
    tagseg predict runs/a new/ --out masks/

All settings have flags (tagseg fit --help) and may stand in a TOML file (--settings FILE); flags win. The paper's own
come with --preset paper-voc or paper-coco, those of vision transformers with dinov2, dinov3 or clip; a TOML file and
flags win over them.
"""


def _settings_files(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill settings that have no flag from --settings FILE, --preset, then from the run folder, and check them."""
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    places = []
    if "--settings" in given:
        places.append((given["--settings"], read_toml(given["--settings"])))
    if "--preset" in given:
        places.append((f"preset {given['--preset']}", preset_values(given["--preset"])))
    if commands == ("bench",) and "PROTOCOL" in given:
        places.append(("the paper's settings", _paper_values(given)))
    run = given.get("RUN") or given.get("--out")
    if run and "--seed" in {argument.name for argument in arguments}:
        saved = Path(run) / "settings.toml"
        if saved.exists():
            places.append((str(saved), read_toml(saved)))
    for place, values in places:
        Settings.from_dict(values, place)  # our message names the file and the setting
        # Below the command's name, or cyclopts drops the sections that are named like commands: train, masks, ...
        for command in reversed(commands):
            values = {command: values}
        Dict(values, source=place)(app, commands, arguments)


def _paper_values(given: dict[str, str]) -> dict[str, Any]:
    """The paper's settings for what `tagseg bench` was asked; background comes from saliency maps that are there."""
    from tagseg.data.voc import voc_root
    from tagseg.studies.bench.protocols import paper_values

    root = Path(given.get("--data", ""))
    saliency = "--data.saliency" in given or ((voc_root(root) or root) / "saliency").is_dir()
    method, backbone = given.get("--method", "oaa"), given.get("--backbone", "vgg16")
    return paper_values(given["PROTOCOL"], method, backbone, saliency)


app = App(
    name="tagseg",
    help=HELP,
    version=__version__,
    config=_settings_files,
    default_parameter=Parameter(negative_iterable=()),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # `main` says how to continue
)

Options = Annotated[Settings, Parameter(name="*")]
SettingsFile = Annotated[Path | None, Parameter(name="--settings", help="TOML file of settings; flags win over it.")]
Force = Annotated[bool, Parameter(negative=(), help="Do again what is done, and all that follows from it.")]
Processes = Annotated[
    int, Parameter(help="Processes on this machine that train the networks, each on a GPU of its own if there are any.")
]
RunFolder = Annotated[Path, Parameter(name="RUN", help="Run folder made by tagseg fit.")]
STAGE_COMMANDS = Group("Stages of fit, one by one", sort_key=2)
MAIN = Group("Main commands", sort_key=1)


def say(line: str) -> None:
    """Print a line as it is, without markup."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def name_text(name: str) -> Any:
    """Return a class name as it is: rich reads markup in plain strings."""
    from rich.text import Text

    return Text(name)
