"""Commands that exchange masks with other tools: export, import."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tagseg.cli.app import EXCHANGE, RunFolder, command, say
from tagseg.settings.bounds import Port
from tagseg.settings.export import ExportSettings
from tagseg.system.progress import bars


@command(EXCHANGE, 0)
def export(
    run: RunFolder,
    /,
    *,
    to: Annotated[
        Literal["coco", "yolo", "yolo-semantic", "voc", "labelstudio", "cvat", "labelme", "datumaro", "hf"],
        Parameter(
            help="Format: COCO JSON, YOLO-seg polygons, Ultralytics' semantic masks, VOC PNGs, Label Studio, CVAT, "
            "LabelMe, Datumaro, Hugging Face image folder."
        ),
    ],
    out: Annotated[Path, Parameter(help="New folder.")],
    of: Annotated[
        str,
        Parameter(
            help="Which masks. final: of the training images, after self-training if there was any; pseudo: before it; "
            "predictions: of the validation images; or a folder written by tagseg predict or tagseg import."
        ),
    ] = "final",
    photos: Annotated[Path | None, Parameter(help="With --of FOLDER: the images given to tagseg predict.")] = None,
    unsure: Annotated[
        Literal["void", "decided", "background"] | None,
        Parameter(
            help="Unsure pixels. void: they stay 255 (default for voc, hf, yolo-semantic); decided: they get their "
            "likeliest label (default for all others); background: they become background."
        ),
    ] = None,
    images: Annotated[
        Literal["none", "copy", "link"] | None,
        Parameter(help="Images next to the masks. By default none for coco, voc and cvat, copies for the others."),
    ] = None,
    settings: Annotated[ExportSettings, Parameter(name="*")] = ExportSettings(),
    force: Annotated[bool, Parameter(negative=(), help="Replace an existing export.")] = False,
) -> None:
    """Write a run's masks in another tool's format.

    Writes a new folder with the masks of the training images, or others with --of. Masks are exact, except as polygons.

        tagseg export runs/a --to coco --out coco/
        tagseg export runs/a --to yolo --out yolo/ --min-part 20
        tagseg export runs/a --to cvat --out cvat/ --parts --polygons
        tagseg export runs/a --to hf --out hf/ --of masks/ --photos holiday/
    """
    from tagseg.export.formats import export

    done = export(run, to, out, of, photos, unsure, images, settings, force, bars)
    say(f"{done.masks} masks: {done.folder}")


@command(EXCHANGE, 1, name="import")
def import_(
    corrected: Annotated[
        Path,
        Parameter(
            name="CORRECTED",
            help="What the tool exported: a ZIP file, folder or file with COCO, Label Studio, CVAT or LabelMe "
            "annotations, or PNGs.",
        ),
    ],
    /,
    *,
    run: Annotated[Path, Parameter(help="Run folder with the training images of these masks.")],
    out: Annotated[Path, Parameter(help="New folder for the masks.")],
    with_pseudo: Annotated[
        bool, Parameter(negative=(), help="Add the run's own masks for images that were not corrected.")
    ] = False,
    force: Annotated[bool, Parameter(negative=(), help="Replace an existing import.")] = False,
) -> None:
    """Bring back masks that you corrected in another tool.

    Writes a new folder of PNG masks from which tagseg segment can learn.

        tagseg import corrected.json --run runs/a --out drawn/ --with-pseudo
        tagseg segment runs/a --labels drawn/ --force
    """
    from tagseg.importing.import_masks import import_masks
    from tagseg.run.folder import Run

    done = import_masks(corrected, run, out, with_pseudo, force, bars)
    own = f" and {done.own} of the run's own" if with_pseudo else ""
    say(f"{done.corrected} corrected masks{own}: {done.folder}")
    start = " --segment.start weights" if Run(run).settings().segment.start == "classifier" else ""
    say(f"Learn from them: tagseg segment {run} --labels {done.folder}{start} --force")


@command(EXCHANGE, 2)
def labelstudio(
    run: RunFolder,
    /,
    *,
    port: Annotated[Port, Parameter(help="Port to listen on (0: any free one).")] = 9090,
    corrections: Annotated[
        Path | None, Parameter(help="Folder for corrected masks. By default RUN.labelstudio.", show_default=False)
    ] = None,
    device: Annotated[str, Parameter(help="Where to compute: auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Predict masks inside Label Studio, and learn from corrections.

    Serves a machine-learning backend for a project that was made from tagseg export --to labelstudio. Enter the address
    it prints under Settings, Model. Writes submitted annotations as masks into the folder RUN.labelstudio; Start
    Training learns from them and from the run's own masks, and replaces the run's segmentation network. Served to this
    machine only, until Ctrl-C.

        tagseg labelstudio runs/a
    """
    from tagseg.live.labelstudio import open_backend, serve_labelstudio

    def ready(address: str) -> None:
        say(f"Label Studio, Settings, Model: {address}")
        say("Press Ctrl-C to stop; corrected masks are kept.")

    serve_labelstudio(open_backend(run, corrections, device), port, ready)
    say("Stopped.")
