"""The stages of fit as commands: train, localise, masks, segment, evaluate, report."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tagseg.cli.app import STAGE_COMMANDS, Force, Options, Processes, RunFolder, SettingsFile, command, say
from tagseg.run.stages import Stage
from tagseg.settings.settings import Settings
from tagseg.system.progress import bars


@command(STAGE_COMMANDS, 0, sections=("data", "train", "rca"))
def train(
    run: RunFolder,
    /,
    *,
    processes: Processes = 1,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Train the classification network on the tags.

    Writes the network, its memory bank and the history of its losses into RUN/network.

        tagseg train runs/a --train.epochs 8 --force
    """
    _run("train", run, settings, force, processes)


@command(STAGE_COMMANDS, 1, sections=("localise",))
def localise(
    run: RunFolder,
    /,
    *,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Compute a map of each tag on each training image.

    Writes one file of maps per image into RUN/maps.

        tagseg localise runs/a
        tagseg localise runs/a --localise.kind refined --force
    """
    _run("localise", run, settings, force)


@command(STAGE_COMMANDS, 2, sections=("localise", "masks", "crf"))
def masks(
    run: RunFolder,
    /,
    *,
    maps_from: Annotated[
        Path | None,
        Parameter(help="Folder of another method's class activation maps, one .npz or .npy per image, to use instead."),
    ] = None,
    data: Annotated[Path | None, Parameter(help="Data folder, to make a new RUN with --maps-from.")] = None,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Turn maps into pseudo-masks: the run's own, or other maps.

    Writes one PNG per training image into RUN/masks, and into RUN/masks_without_void the same without unsure pixels.

        tagseg masks runs/a --masks.background power --force
        tagseg masks runs/b --maps-from cams/ --data photos/
    """
    import dataclasses

    from tagseg.pipeline import fit_until
    from tagseg.run.folder import Run

    if maps_from is None:
        _run("masks", run, settings, force)
        return
    own = dataclasses.replace(settings.localise, maps_from=str(maps_from.resolve()))
    settings = dataclasses.replace(settings, localise=own)
    fit_until(Run(run).data_root() if data is None else data, run, "masks", settings, force, bars)
    say(f"Stage masks done: {run}")


@command(STAGE_COMMANDS, 3, sections=("segment",))
def segment(
    run: RunFolder,
    /,
    *,
    labels: Annotated[
        str,
        Parameter(
            help="Masks to learn from. pseudo: the run's own; truth: the data's true masks, which gives an upper bound "
            "for the same network; or a folder of another tool's masks (PNG, named like the images)."
        ),
    ] = "pseudo",
    data: Annotated[Path | None, Parameter(help="Data folder, to make a new RUN with --labels FOLDER.")] = None,
    processes: Processes = 1,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Train the segmentation network on masks.

    Writes the network and the history of its losses into RUN/segmenter; with --labels truth into RUN/full_supervision,
    next to the run's own network.

        tagseg segment runs/a --segment.epochs 12 --force
        tagseg segment runs/a --labels truth
        tagseg segment runs/b --labels drawn/ --data photos/
    """
    import dataclasses

    from tagseg.pipeline import fit_until

    if labels == "truth":
        _train_upper_bound(run, settings, force, processes)
        return
    if labels != "pseudo":
        own = dataclasses.replace(settings.segment, labels=str(Path(labels).resolve()))
        settings = dataclasses.replace(settings, segment=own)
        if data is not None:
            fit_until(data, run, "segment", settings, force, bars, processes)
            return
    _run("segment", run, settings, force, processes)


def _train_upper_bound(run: Path, settings: Settings, force: bool, processes: int) -> None:
    from tagseg.studies.full_supervision import train_upper_bound

    bound = train_upper_bound(run, settings, force, bars, processes)
    say(f"Full supervision: mIoU {100 * bound.scores.miou:.1f} % on {bound.scores.images} validation images")
    if bound.share is not None:
        say(f"The run's own network reaches {100 * bound.share:.1f} % of it.")


@command(STAGE_COMMANDS, 4, sections=())
def evaluate(
    run: RunFolder,
    /,
    *,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Score masks and network where true masks exist.

    Writes evaluation.json and evaluation.md into the run folder.

        tagseg evaluate runs/a
    """
    _run("evaluate", run, settings, force)


@command(STAGE_COMMANDS, 5, sections=("report",))
def report(
    run: RunFolder,
    /,
    *,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Write the report page.

    Writes RUN/report.html, a page without external files: pictures, scores, training curves and settings.

        tagseg report runs/a --report.examples 50 --force
    """
    _run("report", run, settings, force)


def _run(stage: Stage, run: Path, settings: Settings, force: bool, processes: int = 1) -> None:
    from tagseg.pipeline import run_stage

    run_stage(run, stage, settings, force, bars, processes)
    say(f"Stage {stage} done: {run}")
