"""The command that does everything: fit."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tagseg.cli.app import START, Force, Options, Processes, SettingsFile, command, say, say_tables
from tagseg.run.clock import Clock
from tagseg.run.stages import STAGES, Stage
from tagseg.settings.presets import Preset, Quality
from tagseg.settings.settings import Settings


@command(START, 2)
def fit(
    data: Annotated[
        Path, Parameter(name="DATA", help="Folder of tagged images (tags.csv, metadata.csv, VOC, COCO, shards, ...).")
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="Run folder. An existing one is continued.")],
    until: Annotated[Stage, Parameter(help="Last stage to run.")] = "report",
    processes: Processes = 1,
    preset: Annotated[
        Preset | None,
        Parameter(help="The paper's settings, or a vision transformer's. A TOML file and flags override them."),
    ] = None,
    quality: Annotated[
        Quality | None,
        Parameter(
            help="How much time masks and network may take; docs/quality.md has times and figures. All make masks from "
            "features that are computed once. fast: a segmentation network in a short training; balanced: a short "
            "training improves the masks, a second one learns from them; best: the same with longer trainings. "
            "Default in a new run folder: balanced. A preset, a TOML file and flags override it."
        ),
    ] = None,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Turn a folder of tagged images into masks and a segmentation network.

    Writes a run folder with masks for the training images, the network, scores (where true masks exist) and a report.
    Runs the stages train, localise, masks, segment, evaluate and report.

    Run the same command again after an interruption; it continues where it stopped. Settings can also stand in a TOML
    file: --segment.steps 500 is "steps = 500" under "[segment]".

        tagseg fit photos/ --out runs/a
        tagseg fit VOC2012/ --out runs/voc --train.backbone resnet50
        tagseg fit VOC2012/ --out runs/paper --preset paper-voc --train.batch 4
        tagseg fit photos/ --out runs/a --quality fast
        tagseg fit photos/ --out runs/a --settings my.toml --segment.steps 500
    """
    from tagseg.data.read import read_dataset
    from tagseg.run.folder import Run

    if not Run(out).manifest_file.exists():
        read_dataset(data, settings.data, settings.cache)  # what is wrong there is said before the slow imports
    from tagseg.evaluate.verdict import class_verdicts, verdict_table
    from tagseg.pipeline import fit, fit_until

    if until != STAGES[-1]:
        fit_until(data, out, until, settings, force, Clock(), processes)
        say(f"Done up to stage {until}: {out}")
        return
    fitted = fit(data, out, settings, force, Clock(), processes=processes)
    say_tables(fitted.evaluation.table())
    if verdicts := class_verdicts(Run(fitted.run)):
        say_tables(verdict_table(verdicts))
    say(f"Masks      {fitted.masks}")
    say(f"Report     {fitted.report}")
    say(f"Review     tagseg review {out}")
    say(f"New images tagseg predict {out} IMAGES --out DIR")
