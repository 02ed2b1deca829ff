"""Commands that exchange masks with other tools: export, import."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from tagseg.cli.app import MAIN, RunFolder, app, say
from tagseg.system.progress import bars


@app.command(group=MAIN, sort_key=7)
def export(
    run: RunFolder,
    /,
    *,
    to: Annotated[
        Literal["coco", "yolo", "voc", "labelstudio", "cvat", "hf"],
        Parameter(help="Format: COCO JSON, YOLO-seg, VOC PNGs, Label Studio, CVAT, Hugging Face image folder."),
    ],
    out: Annotated[Path, Parameter(help="New folder.")],
    of: Annotated[
        str,
        Parameter(
            help="Masks: final (training images, after self-training where there is any), pseudo (before it), "
            "predictions (validation images), or a folder that tagseg predict or tagseg import wrote."
        ),
    ] = "final",
    photos: Annotated[
        Path | None, Parameter(help="With --of FOLDER: the images that tagseg predict was given.")
    ] = None,
    unsure: Annotated[
        Literal["void", "decided", "background"] | None,
        Parameter(
            help="Unsure pixels: void (they stay 255; the default for voc and hf), decided (the masks that have none; "
            "the default elsewhere) or background."
        ),
    ] = None,
    images: Annotated[
        Literal["none", "copy", "link"] | None,
        Parameter(help="Images beside the masks; by default copies for yolo and hf, none elsewhere."),
    ] = None,
    parts: Annotated[
        bool, Parameter(negative=(), help="An annotation for each connected part, not for each class (always in yolo).")
    ] = False,
    polygons: Annotated[bool, Parameter(negative=(), help="Polygons, not run-length codes (coco, cvat).")] = False,
    tolerance: Annotated[float, Parameter(help="How far outlines may move, in pixels; 0: exact.")] = 1.0,
    min_part: Annotated[int, Parameter(help="Connected parts of fewer pixels become background.")] = 0,
    address: Annotated[
        str, Parameter(help="What stands before an image's path in Label Studio's tasks.")
    ] = "/data/local-files/?d=",
    force: Annotated[bool, Parameter(negative=(), help="Replace an export that is there.")] = False,
) -> None:
    """Write the masks of a run in another tool's format.

    By default those of the training images. Masks are exact, but for polygons.

        tagseg export runs/a --to coco --out coco/
        tagseg export runs/a --to yolo --out yolo/ --min-part 20
        tagseg export runs/a --to cvat --out cvat/ --parts --polygons
        tagseg export runs/a --to hf --out hf/ --of masks/ --photos holiday/
    """
    from tagseg.export.formats import export
    from tagseg.settings.export import ExportSettings

    settings = ExportSettings(parts, polygons, tolerance, address, min_part)
    done = export(run, to, out, of, photos, unsure, images, settings, force, bars)
    say(f"{done.masks} masks: {done.folder}")


@app.command(name="import", group=MAIN, sort_key=8)
def import_(
    corrected: Annotated[
        Path, Parameter(name="CORRECTED", help="COCO JSON, or folder of PNGs (a VOC devkit, class ids or colours).")
    ],
    /,
    *,
    run: Annotated[Path, Parameter(help="Run folder whose training images the masks are of.")],
    out: Annotated[Path, Parameter(help="New folder for the masks.")],
    with_pseudo: Annotated[
        bool, Parameter(negative=(), help="Add the run's own masks of the images that were not corrected.")
    ] = False,
    force: Annotated[bool, Parameter(negative=(), help="Replace an import that is there.")] = False,
) -> None:
    """Bring masks back that were corrected in another tool, to train from.

    tagseg import corrected.json --run runs/a --out drawn/ --with-pseudo
    tagseg segment runs/a --labels drawn/ --force
    """
    from tagseg.export.importing import import_masks

    done = import_masks(corrected, run, out, with_pseudo, force, bars)
    own = f" and {done.own} of the run's own" if with_pseudo else ""
    say(f"{done.corrected} corrected masks{own}: {done.folder}")
    say(f"Learn from them: tagseg segment {run} --labels {done.folder} --force")
