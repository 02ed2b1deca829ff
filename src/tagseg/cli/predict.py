"""Commands that use a trained run: predict, export-model."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tagseg.cli.app import MAIN, RunFolder, app, err, say
from tagseg.settings.predict import PredictOptions
from tagseg.system.progress import bars
from tagseg.system.signals import exit_status


@app.command(group=MAIN, sort_key=1)
def predict(
    run: Annotated[Path, Parameter(name="RUN", help="Run folder, or what export-model wrote.")],
    images: Annotated[
        list[str],
        Parameter(name="IMAGES", help="Image files, folders, glob patterns or tar shards; URLs of images (s3://...)."),
    ],
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
        tagseg predict runs/a "shards/{000..009}.tar" --out masks/
        tagseg predict runs/a s3://bucket/2024/ --out masks/ --engine ray --format parquet --resume
    """
    from tagseg.prediction.predict import predict

    try:
        done = predict(run, images, out, options, bars)
    except KeyboardInterrupt as stopped:
        err.print("Interrupted. Go on with the same command and --resume.", style="yellow")
        raise SystemExit(exit_status(stopped)) from None
    kept = f" ({done.kept} of them were there)" if done.kept else ""
    say(f"{len(done.ids)} masks: {done.folder}{kept}")
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
