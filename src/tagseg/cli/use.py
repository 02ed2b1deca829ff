"""Commands that use a trained run: predict."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tagseg.cli.root import MAIN, RunFolder, app, err, say
from tagseg.progress import bars
from tagseg.segment.options import PredictOptions


@app.command(group=MAIN, sort_key=1)
def predict(
    run: RunFolder,
    images: Annotated[list[str], Parameter(name="IMAGES", help="Image files, folders or glob patterns.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the masks.")],
    options: Annotated[PredictOptions, Parameter(name="*")] = PredictOptions(),
) -> None:
    """Write masks for new images; no tags needed.

    Masks are palette PNGs at the image's size, named like it; classes.json says what the values mean, and
    predictions.jsonl has a line per image: what was found, on how much of it, and how surely.

        tagseg predict runs/a holiday/ --out masks/ --overlays
        tagseg predict runs/a "new/*/*.jpg" --out masks/ --scales 0.75,1,1.25,1.5 --crf
        tagseg predict runs/a scans/ --out masks/ --max-side 0
    """
    from tagseg.segment.predict import predict

    try:
        done = predict(run, images, out, options, bars)
    except KeyboardInterrupt:
        err.print("Interrupted. Go on with the same command and --resume.", style="yellow")
        raise SystemExit(130) from None
    kept = f" ({done.kept} of them were there)" if done.kept else ""
    say(f"{len(done.ids)} masks: {done.folder}{kept}")
    for _, reason in done.skipped:
        err.print(f"skipped: {reason}", markup=False, style="yellow")
