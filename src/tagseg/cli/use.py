"""Commands that use a trained run: predict."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tagseg.cli.root import MAIN, RunFolder, app, err, say
from tagseg.progress import bars


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
