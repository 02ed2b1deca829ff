"""The command that follows a published protocol: bench."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tagseg.cli.app import MAIN, Force, Options, Processes, SettingsFile, app, say
from tagseg.settings.settings import Settings
from tagseg.studies.bench.protocols import BackboneName, Method, Name
from tagseg.system.progress import bars


@app.command(group=MAIN, sort_key=9)
def bench(
    protocol: Annotated[Name, Parameter(name="PROTOCOL", help="voc2012 (VOC with SBD's list), coco2014.")],
    /,
    *,
    data: Annotated[Path, Parameter(help="Folder of the data set; where there is none, you are told how to get it.")],
    out: Annotated[
        Path | None, Parameter(help="Folder of runs and table; by default runs/PROTOCOL_METHOD_BACKBONE.")
    ] = None,
    method: Annotated[
        Method, Parameter(help="What RCA stands on; eps needs saliency maps, in saliency in the data folder.")
    ] = "oaa",
    backbone: Annotated[
        BackboneName, Parameter(help="The classifier's; resnet38 needs --train.weights FILE.safetensors.")
    ] = "vgg16",
    seeds: Annotated[int, Parameter(help="How many seeds, from --seed on.")] = 1,
    crf: Annotated[
        bool, Parameter(help="Also score the segmenter with the dense CRF behind it, as the paper does.")
    ] = True,
    check: Annotated[bool, Parameter(negative=(), help="Check the data, and do nothing else.")] = False,
    processes: Processes = 1,
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Follow a published protocol with the paper's settings, and compare with the published figures.

    Checks the data first. Run it again to continue. A TOML file and flags win over the paper's settings.

        tagseg bench voc2012 --data VOCdevkit/VOC2012 --check
        tagseg bench voc2012 --data VOCdevkit/VOC2012 --seeds 3
        tagseg bench coco2014 --data COCO --method eps --backbone resnet101
    """
    from tagseg.studies.bench.check import check_data
    from tagseg.studies.bench.protocols import PROTOCOLS
    from tagseg.studies.bench.run import bench as follow

    record = PROTOCOLS[protocol]
    if check:
        found = check_data(data, record, settings)
        say(found.table())
        found.require()
        return
    command = shlex.join([app.name[0], *sys.argv[1:]])
    folder = out or Path("runs") / f"{protocol}_{method}_{backbone}"
    done = follow(data, folder, record, settings, seeds, crf, force, bars, command, processes)
    say(done.table())
    say(f"Table: {folder / 'bench.md'}")
