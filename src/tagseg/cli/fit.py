"""Commands that train: fit, and its stages one by one."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tagseg.cli.app import MAIN, STAGE_COMMANDS, Force, Options, Processes, RunFolder, SettingsFile, app, say
from tagseg.run.stages import STAGES as ORDER
from tagseg.run.stages import Stage
from tagseg.settings.presets import Preset
from tagseg.settings.settings import Settings
from tagseg.system.progress import bars


@app.command(group=MAIN, sort_key=0)
def fit(
    data: Annotated[
        Path, Parameter(name="DATA", help="Folder of tagged images (tags.csv, metadata.csv, VOC, COCO, shards, ...).")
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="Run folder; an existing one is continued.")],
    until: Annotated[Stage, Parameter(help="Last stage to run.")] = "report",
    processes: Processes = 1,
    preset: Annotated[
        Preset | None, Parameter(help="The paper's settings, or a vision transformer's; a TOML file and flags win.")
    ] = None,
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
    from tagseg.pipeline import fit, fit_until

    if until != ORDER[-1]:
        fit_until(data, out, until, settings, force, bars, processes)
        say(f"Done up to stage {until}: {out}")
        return
    fitted = fit(data, out, settings, force, bars, processes=processes)
    say(fitted.evaluation.table())
    say(f"Masks      {fitted.masks}")
    say(f"Report     {fitted.report}")
    say(f"Review     tagseg review {out}")
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
    app.command(command, name=stage, group=STAGE_COMMANDS, sort_key=ORDER.index(stage))


@app.command(group=STAGE_COMMANDS, sort_key=ORDER.index("train"))
def train(
    run: RunFolder,
    /,
    *,
    processes: Processes = 1,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Train the classification network from the tags.

    tagseg train runs/a --train.epochs 8 --force
    """
    from tagseg.pipeline import run_stage

    run_stage(run, "train", settings, force, bars, processes)
    say(f"Stage train done: {run}")


_stage_command("localise", "Compute the maps of the training images' tags.", "tagseg localise runs/a")


@app.command(group=STAGE_COMMANDS, sort_key=ORDER.index("masks"))
def masks(
    run: RunFolder,
    /,
    *,
    maps_from: Annotated[
        Path | None,
        Parameter(
            help="Folder of another method's class activation maps, an .npz or .npy an image, instead of the run's own."
        ),
    ] = None,
    data: Annotated[Path | None, Parameter(help="With --maps-from: data folder, where RUN is to be made anew.")] = None,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Turn maps into pseudo-masks: the run's own maps, or those of another method.

    tagseg masks runs/a --masks.background power --force
    tagseg masks runs/b --maps-from cams/ --data photos/
    """
    import dataclasses

    from tagseg.pipeline import fit_until, run_stage
    from tagseg.run.folder import Run

    if maps_from is None:
        run_stage(run, "masks", settings, force, bars)
    else:
        own = dataclasses.replace(settings.localise, maps_from=str(maps_from.resolve()))
        settings = dataclasses.replace(settings, localise=own)
        fit_until(Run(run).data_root() if data is None else data, run, "masks", settings, force, bars)
    say(f"Stage masks done: {run}")


@app.command(group=STAGE_COMMANDS, sort_key=ORDER.index("segment"))
def segment(
    run: RunFolder,
    /,
    *,
    labels: Annotated[
        str,
        Parameter(
            help="Masks to learn from: pseudo (the run's own); truth (the data's true masks: the same network's upper "
            "bound, kept beside the run's own network); or a folder of any other tool's, PNGs named like the images."
        ),
    ] = "pseudo",
    data: Annotated[
        Path | None, Parameter(help="With --labels FOLDER: data folder, where RUN is to be made anew.")
    ] = None,
    processes: Processes = 1,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Train the segmentation network on the pseudo-masks, on true masks or on those of another tool.

    tagseg segment runs/a --segment.epochs 12 --force
    tagseg segment runs/a --labels truth
    tagseg segment runs/b --labels drawn/ --data photos/
    """
    import dataclasses

    from tagseg.pipeline import fit_until, run_stage

    if labels == "truth":
        from tagseg.studies.full_supervision import train_upper_bound

        bound = train_upper_bound(run, settings, force, bars, processes)
        say(f"Full supervision: mIoU {100 * bound.scores.miou:.1f} % on {bound.scores.images} validation images")
        if bound.share is not None:
            say(f"The run's own network reaches {100 * bound.share:.1f} % of it.")
        return
    if labels != "pseudo":
        own = dataclasses.replace(settings.segment, labels=str(Path(labels).resolve()))
        settings = dataclasses.replace(settings, segment=own)
        if data is not None:
            fit_until(data, run, "segment", settings, force, bars, processes)
            return
    run_stage(run, "segment", settings, force, bars, processes)
    say(f"Stage segment done: {run}")


_stage_command("evaluate", "Score pseudo-masks and segmenter where true masks exist.", "tagseg evaluate runs/a")
_stage_command("report", "Write the report page.", "tagseg report runs/a --force")
