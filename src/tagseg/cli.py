"""The command line: one thin command a stage. Only this module prints."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, Group, Parameter
from cyclopts.config import Dict
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from tagseg import __version__
from tagseg.presets import Preset, preset_values
from tagseg.progress import bars
from tagseg.run import STAGES as ORDER
from tagseg.run import Stage
from tagseg.settings import Settings
from tagseg.settings_file import read_toml

out = Console()
err = Console(stderr=True)

HELP = """tagseg turns image tags into segmentation masks.

Give it photographs with tags; get pixel masks for them, a segmentation network for new images, and a report.

Start here:

    tagseg demo                        see it work in minutes
    tagseg inspect photos/             is my data as it should be?
    tagseg fit photos/ --out runs/a    masks, network, report
    tagseg predict runs/a new/ --out masks/

All settings have flags (tagseg fit --help) and may stand in a TOML file (--settings FILE); flags win. The paper's own
come with --preset paper-voc or paper-coco; a TOML file and flags win over them.
"""


def _settings_files(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill settings that have no flag from --settings FILE, --preset, then from the run folder, and check them."""
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    places = []
    if "--settings" in given:
        places.append((given["--settings"], read_toml(given["--settings"])))
    if "--preset" in given:
        places.append((f"preset {given['--preset']}", preset_values(given["--preset"])))
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
RunFolder = Annotated[Path, Parameter(name="RUN", help="Run folder made by tagseg fit.")]
STAGES = Group("Stages of fit, one by one", sort_key=2)
MAIN = Group("Main commands", sort_key=1)


@app.command(group=MAIN, sort_key=0)
def fit(
    data: Annotated[
        Path, Parameter(name="DATA", help="Folder of tagged images (tags.csv, metadata.csv, VOC, COCO, ...).")
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="Run folder; an existing one is continued.")],
    until: Annotated[Stage, Parameter(help="Last stage to run.")] = "report",
    preset: Annotated[Preset | None, Parameter(help="The paper's settings; a TOML file and flags win over it.")] = None,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Train on tagged images and write masks, a segmentation network, figures and a report.

    Runs train, localise, masks, segment, evaluate, report. Run it again to continue after an interruption.

        tagseg fit photos/ --out runs/a
        tagseg fit VOC2012/ --out runs/voc --train.backbone resnet50
        tagseg fit VOC2012/ --out runs/paper --preset paper-voc --train.batch 4
        tagseg fit photos/ --out runs/a --settings my.toml --train.epochs 9
    """
    from tagseg.pipeline import fit

    fitted = fit(data, out, settings, force, bars, until)
    if fitted is None:
        say(f"Done up to stage {until}: {out}")
        return
    say(fitted.evaluation.table())
    say(f"Masks      {fitted.masks}")
    say(f"Report     {fitted.report}")
    say(f"New images tagseg predict {out} IMAGES --out DIR")


def _stage_command(stage: Stage, summary: str, example: str) -> None:
    def command(
        run: RunFolder,
        /,
        *,
        settings_file: SettingsFile = None,
        force: Force = False,
        settings: Options = Settings(),
    ) -> None:
        from tagseg.pipeline import run_stage

        run_stage(run, stage, settings, force, bars)
        say(f"Stage {stage} done: {run}")

    command.__doc__ = f"{summary}\n\n        {example}\n    "
    app.command(command, name=stage, group=STAGES, sort_key=ORDER.index(stage))


_stage_command(
    "train", "Train the classification network from the tags.", "tagseg train runs/a --train.epochs 8 --force"
)
_stage_command("localise", "Compute the maps of the training images' tags.", "tagseg localise runs/a")
_stage_command("masks", "Turn maps into pseudo-masks.", "tagseg masks runs/a --masks.background power --force")
_stage_command(
    "segment",
    "Train the segmentation network on the pseudo-masks.",
    "tagseg segment runs/a --segment.epochs 12 --force",
)
_stage_command("evaluate", "Score pseudo-masks and segmenter where true masks exist.", "tagseg evaluate runs/a")
_stage_command("report", "Write the report page.", "tagseg report runs/a --force")


@app.command(group=MAIN, sort_key=1)
def predict(
    run: RunFolder,
    images: Annotated[list[str], Parameter(name="IMAGES", help="Image files, folders or glob patterns.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the masks.")],
    overlays: Annotated[bool, Parameter(negative=(), help="Also write each image with its mask laid over.")] = False,
    device: Annotated[str, Parameter(help="Where to compute: auto, cpu, cuda, mps.")] = "auto",
    max_megapixels: Annotated[float, Parameter(help="Larger images are skipped.")] = 120.0,
    force: Annotated[bool, Parameter(negative=(), help="Overwrite masks that exist.")] = False,
) -> None:
    """Write masks for new images; no tags needed.

    Masks are palette PNGs at the image's size, named like it; classes.json says what the values mean.

        tagseg predict runs/a holiday/ --out masks/ --overlays
        tagseg predict runs/a "new/*.jpg" --out masks/
    """
    from tagseg.segment.predict import predict

    done = predict(run, images, out, overlays, device, max_megapixels, force, bars)
    say(f"{len(done.ids)} masks: {done.folder}")
    for _, reason in done.skipped:
        err.print(f"skipped: {reason}", markup=False, style="yellow")


@app.command(group=MAIN, sort_key=2)
def inspect(
    data: Annotated[Path, Parameter(name="DATA", help="Folder of tagged images.")],
    /,
    *,
    settings_file: SettingsFile = None,
    settings: Options = Settings(),
) -> None:
    """Show what tagseg sees in a data folder, and what may go wrong with it.

    tagseg inspect photos/
    """
    import dataclasses

    from tagseg.data.inspect import inspect
    from tagseg.data.read import read_dataset

    lenient = dataclasses.replace(settings.data, min_images=1)
    show_inspection(inspect(read_dataset(data, lenient), settings.data, bars), settings.data.min_images)


@app.command(group=MAIN, sort_key=3)
def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for the drawn images (data) and the run.")] = Path("runs/demo"),
    seed: Annotated[int, Parameter(help="Seed of the drawing and the training.")] = 0,
    device: Annotated[str, Parameter(help="Where to compute: auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Draw a small data set and run everything on it; needs no data, no network, no GPU.

    tagseg demo
    tagseg demo --out /tmp/demo --seed 1
    """
    from tagseg.demo import run_demo

    say("The demo draws its own images and trains small networks from scratch: its figures say what the steps do, not")
    say("what tagseg reaches on photographs with pretrained weights.")
    fitted = run_demo(out, seed, device, bars)
    say(fitted.evaluation.table())
    say(f"Report: {fitted.report}")


@app.command(group=MAIN, sort_key=4)
def ablate(
    data: Annotated[Path, Parameter(name="DATA", help="Folder of tagged images, some with true masks to score with.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the runs and of the table; an existing one is continued.")],
    seeds: Annotated[int, Parameter(help="How many seeds every arm is trained with.")] = 3,
    first_seed: Annotated[int | None, Parameter(help="The first of them; --seed where it is not given.")] = None,
    arms: Annotated[str, Parameter(help="Arms to train, with commas between.")] = "cam,contrast,aggregation,both",
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Train with and without contrast and aggregation, same seeds, and compare the masks with true ones.

    Writes a table and a picture after every run. Run it again to continue after an interruption.
    Several shells may share a folder: give each its own arms.

        tagseg ablate VOC2012/ --out runs/ablation --seeds 3
        tagseg ablate photos/ --out runs/ablation --arms cam,both --first-seed 3 --seeds 2
    """
    import dataclasses

    from tagseg.ablate import ablate

    if first_seed is not None:
        settings = dataclasses.replace(settings, seed=first_seed)
    done = ablate(data, out, settings, seeds, bars, arms.split(","), force)
    say(done.table())
    say(f"Table and picture: {out / 'ablation.md'}, {out / 'ablation.svg'}")


@app.command(group=MAIN, sort_key=5)
def atlas(
    run: RunFolder,
    /,
    *,
    image: Annotated[
        tuple[Path, ...],
        Parameter(help="New image, no tags needed: show what its regions attend to. Repeatable.", show_default=False),
    ] = (),
    per_class: Annotated[int, Parameter(help="Training images of each class to search for regions.")] = 60,
    out: Annotated[Path | None, Parameter(help="Page to write; by default RUN/atlas.html.")] = None,
    device: Annotated[str, Parameter(help="Where to compute: auto, cpu, cuda, mps.")] = "auto",
    force: Annotated[bool, Parameter(negative=(), help="Overwrite a page that exists.")] = False,
) -> None:
    """Write a page that shows what the memory bank knows: prototypes, the regions nearest to them, likely confusions.

    tagseg atlas runs/a
    tagseg atlas runs/a --image new/1.jpg --image new/2.jpg --out atlas.html
    """
    from tagseg.report.atlas import atlas

    say(f"Atlas: {atlas(run, image, per_class, out, device, force, bars).path}")


@app.command(group=MAIN, sort_key=6)
def calibrate(
    run: RunFolder,
    /,
    *,
    masks: Annotated[
        Path,
        Parameter(help="Folder of true masks, 5 to 50, named like training images; values as in the data's own masks."),
    ],
    apply: Annotated[
        bool, Parameter(negative=(), help="Change the run's settings if the gain is certain; undoes masks and later.")
    ] = False,
) -> None:
    """Choose the mask settings with a handful of true masks, and say how sure the choice is.

    Tries background rules, then dense CRFs. The images used are never scored again.

        tagseg calibrate runs/a --masks drawn/
        tagseg calibrate runs/a --masks drawn/ --apply
    """
    from tagseg.measure.calibrate import calibrate

    found = calibrate(run, masks, apply, bars)
    say(found.table())
    if apply and found.certain:
        say(f"Settings changed, masks and later stages discarded; go on with tagseg fit DATA --out {run}")
    elif apply:
        say("Nothing changed.")


def show_inspection(found: Any, min_images: int) -> None:
    """Print an Inspection as tables and warnings."""
    say(f"Layout {found.layout}: " + ", ".join(
        f"{count} {split} images ({found.masks[split]} with masks, {found.saliency[split]} with saliency maps)"
        for split, count in found.images.items() if count
    ))  # fmt: skip
    if found.smallest and found.largest:
        (h, w), (tall, wide) = found.smallest, found.largest
        say(f"Sizes from {w} x {h} to {wide} x {tall} pixels")
    counts = Table(title="Images per class")
    for column in ("class", *found.per_class):
        counts.add_column(column, justify="left" if column == "class" else "right")
    for i, name in enumerate(found.classes):
        counts.add_row(name_text(name), *(str(count[i]) for count in found.per_class.values()))
    out.print(counts)
    tags = ", ".join(f"{images} with {n}" for n, images in sorted(found.tags_per_image.items()))
    say(f"Tags per training image: {tags}")
    if len(found.classes) <= 25:
        together = Table(title="Training images in which two classes appear together")
        for column in ("", *found.classes):
            together.add_column(name_text(column), justify="right")
        for i, name in enumerate(found.classes):
            together.add_row(name_text(name), *(str(n) if n else "." for n in found.together[i]))
        out.print(together)
    for note in found.notes:
        say(f"Note: {note}")
    warnings = [
        f"{a} never appears without {b}: tags cannot tell them apart. Add images of {a} alone."
        for a, b in found.never_apart
    ]
    rare = [(name, n[i]) for i, name in enumerate(found.classes) if (n := found.per_class["train"])[i] < min_images]
    warnings += [
        f"{name} has {n} training images, fewer than --data.min-images {min_images}: fit will refuse."
        for name, n in rare
    ]
    warnings += [f"broken file, will be skipped: {path} ({reason})" for path, reason in found.broken]
    warnings += [f"same content: {', '.join(group)}" for group in found.duplicates]
    for line in warnings:
        out.print(f"! {line}", markup=False, style="yellow")
    if not warnings:
        out.print("Nothing suspicious found.", style="green")


def name_text(name: str) -> Any:
    """Return a class name as it is: rich reads markup in plain strings."""
    from rich.text import Text

    return Text(name)


def say(line: str) -> None:
    """Print a line as it is, without markup."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; what is wrong with the input goes to standard error, with exit status 2."""
    handler = RichHandler(console=err, show_path=False, show_level=False, omit_repeated_times=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("tagseg").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; our own message follows
    try:
        app(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        err.print("Interrupted. Run the same command again to continue.", style="yellow")
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        err.print(f"Error: {error}", markup=False, highlight=False, style="red", soft_wrap=True)
        raise SystemExit(2) from None
