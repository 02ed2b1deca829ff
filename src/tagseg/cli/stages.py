"""Commands that train: fit, and its stages one by one."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tagseg.cli.root import MAIN, STAGES, Force, Options, RunFolder, SettingsFile, app, say
from tagseg.presets import Preset
from tagseg.progress import bars
from tagseg.run import STAGES as ORDER
from tagseg.run import Stage
from tagseg.settings import Settings


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
