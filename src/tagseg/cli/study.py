"""Commands for research: ablate, bench."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tagseg.cli.app import RESEARCH, Force, Options, Processes, SettingsFile, app, command, say, say_tables
from tagseg.settings.bounds import AtLeastOne
from tagseg.settings.settings import Settings
from tagseg.studies.bench.protocols import BackboneName, Method, Name
from tagseg.system.progress import bars


@command(RESEARCH, 0, sections=("data", "train", "rca", "localise", "masks", "crf"))
def ablate(
    data: Annotated[Path, Parameter(name="DATA", help="Folder of tagged images, some of them with true masks.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the runs and the table. An existing one is continued.")],
    seeds: Annotated[AtLeastOne, Parameter(help="Number of seeds per arm.")] = 3,
    first_seed: Annotated[int | None, Parameter(help="The first seed. By default --seed.")] = None,
    arms: Annotated[str, Parameter(help="Arms to train, separated by commas.")] = "cam,contrast,aggregation,both",
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Measure what contrast and aggregation add to the masks.

    Trains the same seeds with and without each of the two and scores the masks against true masks. Writes run folders
    OUT/ARM_SEED, and after each run a table (ablation.md, ablation.json) and a picture (ablation.svg).

    Run the same command again after an interruption. Several processes may share OUT: give each its own --arms.

        tagseg ablate VOC2012/ --out runs/ablation --seeds 3
        tagseg ablate photos/ --out runs/ablation --arms cam,both --seeds 2
    """
    import dataclasses

    from tagseg.studies.ablation.ablate import ablate

    if first_seed is not None:
        settings = dataclasses.replace(settings, seed=first_seed)
    done = ablate(data, out, settings, seeds, bars, arms.split(","), force)
    say_tables(done.table())
    say(f"Table and picture: {out / 'ablation.md'}, {out / 'ablation.svg'}")


@command(RESEARCH, 1)
def bench(
    protocol: Annotated[Name, Parameter(name="PROTOCOL", help="voc2012 (VOC with SBD's training list) or coco2014.")],
    /,
    *,
    data: Annotated[Path, Parameter(help="Folder of the data set. If it is missing, you are told how to get it.")],
    out: Annotated[
        Path | None, Parameter(help="Folder of the runs and the table. By default runs/PROTOCOL_METHOD_BACKBONE.")
    ] = None,
    method: Annotated[
        Method, Parameter(help="Method that RCA extends. eps needs saliency maps in the data folder's folder saliency.")
    ] = "oaa",
    backbone: Annotated[
        BackboneName,
        Parameter(help="Backbone of the classification network. resnet38 needs --train.weights FILE.safetensors."),
    ] = "vgg16",
    seeds: Annotated[AtLeastOne, Parameter(help="Number of seeds, from --seed on.")] = 1,
    crf: Annotated[
        bool, Parameter(help="Also score the segmentation network with the dense CRF after it, as the paper does.")
    ] = True,
    check: Annotated[bool, Parameter(negative=(), help="Check the data and stop.")] = False,
    processes: Processes = 1,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Reproduce published results: their data, the paper's settings.

    Checks the data, trains each seed and scores it. Writes run folders OUT/seed_N and, after each seed, a table of own
    and published figures (bench.md, bench.json). A TOML file and flags override the paper's settings.

    Run the same command again after an interruption.

        tagseg bench voc2012 --data VOCdevkit/VOC2012 --check
        tagseg bench voc2012 --data VOCdevkit/VOC2012 --seeds 3
        tagseg bench coco2014 --data COCO --method eps --backbone resnet101
    """
    from tagseg.studies.bench.check import check_data
    from tagseg.studies.bench.protocols import PROTOCOLS

    record = PROTOCOLS[protocol]
    if check or not data.is_dir():
        found = check_data(data, record, settings)
        say_tables(found.table())
        found.require()
        return
    from tagseg.studies.bench.run import bench as follow

    call = shlex.join([app.name[0], *sys.argv[1:]])
    folder = out or Path("runs") / f"{protocol}_{method}_{backbone}"
    done = follow(data, folder, record, settings, seeds, crf, force, bars, call, processes)
    say_tables(done.table())
    say(f"Table: {folder / 'bench.md'}")
