"""Commands that use a trained network: predict, export-model, push."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tagseg.cli.app import USE, RunFolder, command, complain, err, say
from tagseg.settings.predict import PredictOptions
from tagseg.system.progress import bars
from tagseg.system.signals import exit_status


@command(USE, 0)
def predict(
    run: Annotated[
        str,
        Parameter(
            name="RUN",
            help="Run folder, folder written by tagseg export-model, or network on the Hugging Face Hub "
            "(hf://owner/name, hf://owner/name@revision).",
        ),
    ],
    images: Annotated[
        list[str],
        Parameter(name="IMAGES", help="Image files, folders, glob patterns, tar shards or URLs (s3://...)."),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder for the masks.")],
    options: Annotated[PredictOptions, Parameter(name="*")] = PredictOptions(),
) -> None:
    """Segment new images; they need no tags.

    Writes a palette PNG per image, of its size and name; classes.json, which maps mask values to classes; and
    predictions.jsonl, which lists each image's classes with their area and confidence.

        tagseg predict runs/a holiday/ --out masks/ --overlays
        tagseg predict runs/a "new/*/*.jpg" --out masks/ --scales 0.75,1 --crf
        tagseg predict runs/a scans/ --out masks/ --max-side 0
        tagseg predict runs/a "shards/{000..009}.tar" --out masks/
        tagseg predict runs/a s3://bucket/2024/ --out masks/ --on ray
        tagseg predict hf://owner/name new/ --out masks/
    """
    from tagseg.prediction.predict import predict

    try:
        done = predict(run, images, out, options, bars)
    except KeyboardInterrupt as stopped:
        err.print("Interrupted. Run the same command again with --resume to continue.", style="yellow")
        raise SystemExit(exit_status(stopped)) from None
    kept = f" ({done.kept} from before)" if done.kept else ""
    say(f"{len(done.ids)} masks: {done.folder}{kept}")
    say(f"Computed by {done.engine}: {done.why}.")
    for _, reason in done.skipped:
        complain(f"skipped: {reason}")


@command(USE, 1)
def export_model(
    run: RunFolder,
    /,
    *,
    out: Annotated[Path, Parameter(help="New folder.")],
    onnx: Annotated[bool, Parameter(negative=(), help="Also write model.onnx (requires tagseg[onnx]).")] = False,
    openvino: Annotated[
        bool, Parameter(negative=(), help="Also write model.xml, for OpenVINO (requires tagseg[openvino]).")
    ] = False,
    int8: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Also write model.int8.onnx, smaller and faster (requires tagseg[onnx]).",
        ),
    ] = False,
    force: Annotated[bool, Parameter(negative=(), help="Replace a folder written by tagseg export-model.")] = False,
) -> None:
    """Copy the segmentation network into a folder of its own.

    Writes the weights, a description for tagseg predict and tagseg.load, and a model card (README.md). If the network
    is one of segmentation-models-pytorch, also config.json, from which that library loads it. With --onnx also
    model.onnx, which runs without tagseg. Every engine's results are compared with PyTorch's at ten sizes. --int8 is
    calibrated on the run's training photographs, and refused if it loses more than one point of mIoU on those for
    validation.

        tagseg export-model runs/a --out cats/
        tagseg export-model runs/a --out cats/ --onnx
    """
    from tagseg.export.model import export_model

    done = export_model(run, out, onnx, force, openvino, int8)
    say(f"Model: {done.folder} ({', '.join(done.files)})")
    if done.onnx_difference is not None and (onnx or openvino):
        engines = " and ".join(name for name, on in (("ONNX Runtime", onnx), ("OpenVINO", openvino)) if on)
        say(f"{engines}: PyTorch's probabilities within {done.onnx_difference:.1g}, at ten sizes.")
    if done.int8_loss is not None:
        say(f"int8: {done.int8_loss}.")
    if onnx and done.onnx_difference is None:
        err.print(
            "model.onnx was not checked: onnxruntime is not installed (pip install 'tagseg[onnx]').", markup=False
        )


@command(USE, 2)
def push(
    run: Annotated[Path, Parameter(name="RUN", help="Run folder, or a folder written by tagseg export-model.")],
    /,
    *,
    to: Annotated[str, Parameter(help="Repository on the Hugging Face Hub: owner/name.")],
    private: Annotated[bool, Parameter(negative=(), help="Only its owner may see the repository.")] = False,
    revision: Annotated[str | None, Parameter(help="Branch, created if it does not exist; by default main.")] = None,
    message: Annotated[str | None, Parameter(help="Message of the commit.")] = None,
    dry_run: Annotated[bool, Parameter(negative=(), help="Only print what would be uploaded.")] = False,
) -> None:
    """Upload the segmentation network to the Hugging Face Hub.

    Prints the files and their sizes, and the address of the commit. The files are those of tagseg export-model; a
    repository that does not exist is created. tagseg predict and tagseg.load take the network as hf://owner/name. It
    requires a token: hf auth login, or HF_TOKEN. No photograph or mask is uploaded, but the model card lists classes,
    figures and settings: read it first (tagseg export-model).

        tagseg push runs/a --to owner/cats --dry-run
        tagseg push runs/a --to owner/cats --private
    """
    from tagseg.export.push import MESSAGE, push

    done = push(run, to, private, revision, message or MESSAGE, dry_run)
    for name, size in done.files.items():
        say(f"{size / 1e6:10.3f} MB  {name}")
    total = sum(done.files.values()) / 1e6
    if dry_run:
        say(f"{total:10.3f} MB  would be uploaded to {done.repository}; nothing was sent")
    else:
        say(f"{total:10.3f} MB  uploaded to {done.repository}: {done.url}")
