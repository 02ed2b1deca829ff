"""Commands that use a trained run: predict, export-model."""

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


@app.command(group=MAIN, sort_key=5)
def export_model(
    run: RunFolder,
    /,
    *,
    out: Annotated[Path, Parameter(help="The new folder.")],
    onnx: Annotated[bool, Parameter(negative=(), help="Also write model.onnx (needs tagseg[onnx]).")] = False,
    force: Annotated[bool, Parameter(negative=(), help="Replace a folder that an earlier export made.")] = False,
) -> None:
    """Write the segmentation network into a folder to take away, with a model card.

    tagseg.load(DIR) and tagseg predict DIR take it on any machine; model.onnx does without tagseg.

        tagseg export-model runs/a --out cats/
        tagseg export-model runs/a --out cats/ --onnx
    """
    from tagseg.export.model import export_model

    done = export_model(run, out, onnx, force)
    say(f"Model: {done.folder} ({', '.join(done.files)})")
    if done.onnx_difference is not None:
        say(f"ONNX Runtime gives PyTorch's probabilities, to within {done.onnx_difference:.1g}.")
    elif onnx:
        err.print(
            "model.onnx was not checked: onnxruntime is not installed (pip install 'tagseg[onnx]').", markup=False
        )
