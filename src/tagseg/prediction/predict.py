"""Masks for images without tags, from a trained segmentation network.

The way of an image: it is found (`find_images`), read at the resolution of the prediction (`read`), goes through the
network together with others (`chunks`, `batches`), its probabilities become a mask (`finish`), and its files and its
line are written here. An engine (`local_engine`, `ray_engine`) runs the steps between finding and writing.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tagseg.errors import DataError, RunError
from tagseg.masks.mask_files import write_classes
from tagseg.prediction.find_images import Location, find_images
from tagseg.prediction.lines import LINES, PredictionLine, append_line, read_predictions, write_predictions
from tagseg.prediction.local_engine import IMAGE_THREADS, local_outcomes
from tagseg.prediction.outputs import Outcome, pending_images, write_files
from tagseg.prediction.parquet import pending_rows, write_parts
from tagseg.prediction.plan import Plan
from tagseg.prediction.ray_engine import ray_outcomes, starts_cluster
from tagseg.prediction.read import read_input
from tagseg.run.draft import MANIFEST, SETTINGS
from tagseg.run.folder import network_folder
from tagseg.run.hub import is_hub_address
from tagseg.run.lock import hold_folder
from tagseg.run.stages import OTHERS, OUTPUTS
from tagseg.segment.engines import Pictures, may_have_gpu, spread
from tagseg.segment.load import open_predictor
from tagseg.segment.predictor import Predictor
from tagseg.settings.predict import Engine, PredictOptions
from tagseg.system.changes import begin, end
from tagseg.system.files import remove_temporary
from tagseg.system.process import ran_out
from tagseg.system.progress import Track, map_ahead, silent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """What `predict` wrote: the folder, the ids of the images in it, the unreadable images with the reasons, and how
    many of the images already had their masks (resume); which engine computed them, and why this one."""

    folder: Path
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    kept: int = 0
    engine: str = "torch"
    why: str = ""


def predict(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    options: PredictOptions | None = None,
    track: Track = silent,
) -> Predictions:
    """Write a palette mask for every image, named like the image, with classes.json and predictions.jsonl, into `out`.

    predictions.jsonl has one line per image in the order of the images (see `image_line`; for an image that cannot be
    read, its location and the error). A line is appended once all files of its image are written. Lines of other images
    stay, in front. After a kill, the same call continues.

    Args:
        run: a run folder with a trained segmenter, or anything else that `load` accepts.
        images: image files, folders (searched with their subfolders) or glob patterns, or URLs of these (fsspec).
        out: the folder for the masks.
        options: how to predict, and what to write.
        track: how to report progress.

    Raises:
        DataError: if there are no images, none can be read, an image or a file of a run would be overwritten, or a mask
            exists and neither `force` nor `resume` is set.
        RunError: as `load`; if another command is writing to `out`; if memory runs out; if the Ray engine is not
            available or stops.
        WriteError: if a file cannot be written, for example because the disk is full.
    """
    options, out = options or PredictOptions(), Path(out)
    asked = options
    if options.on == "ray":
        # Workers of a cluster load their own networks: here one is loaded only to check it, and for its classes. Which
        # engines the machines of somebody's cluster have is not known; our own cluster is this machine.
        here = starts_cluster() and options.device in ("auto", "cpu") and not may_have_gpu()
        if options.engine == "auto" and not here:
            fixed: Engine = "onnxruntime" if options.precision == "int8" else "torch"
            options = dataclasses.replace(options, engine=fixed)
        asked = dataclasses.replace(options, device="cpu")
    if not is_hub_address(run):
        network_folder(Path(run))
    found = find_images([images] if isinstance(images, str | Path) else images, out)
    _require_outside(out)
    request = _request(run, images, options)
    with hold_folder(out) as begun:
        if begun == request:  # the same prediction was killed: it is continued
            options = dataclasses.replace(options, resume=True, force=False)
        return _predict(run, found, out, options, asked, request, track)


def _request(run: str | Path, images: str | Path | Sequence[str | Path], options: PredictOptions) -> str:
    """Return a digest of what is predicted from what, and how."""
    named = [images] if isinstance(images, str | Path) else images
    plain = dataclasses.replace(options, resume=False, force=False)
    return "predict " + hashlib.sha256(repr((str(run), list(map(str, named)), plain)).encode()).hexdigest()


def _require_outside(out: Path) -> None:
    """Raise a DataError when `out` is a run folder, or a folder in which a run keeps files of its own."""
    folder = out.resolve()
    own = {name for names in (*OUTPUTS.values(), *OTHERS.values()) for name in names} - set(OTHERS["bench"])
    for root in (folder, *folder.parents):
        below = folder.relative_to(root).parts
        if (root / MANIFEST).is_file() and (root / SETTINGS).is_file() and (not below or below[0] in own):
            raise DataError(
                f"--out {out}: must not be where the run {root} keeps its own files, which masks of new images would "
                "replace; choose another --out"
            )


def _predict(
    run: str | Path,
    found: dict[str, Location],
    out: Path,
    options: PredictOptions,
    asked: PredictOptions,
    request: str,
    track: Track,
) -> Predictions:
    opened = open_predictor(run, asked, partial(_some_pictures, found, options), len(found))
    log.debug("computed by %s: %s", opened.engine, opened.why)
    predictor = opened.predictor
    options = dataclasses.replace(options, engine=opened.engine)  # for the workers of a cluster
    todo, lines = (pending_images if options.format == "png" else pending_rows)(found, out, options)
    written = _write_outcomes(_outcomes(predictor, run, found, todo, options), out, found, todo, options)
    begin(out, request)
    if options.resume:
        remove_temporary(out, exact=True)
    write_classes(out, predictor.classes[1:])
    write_predictions(out / LINES, lines)
    order = {str(location): place for place, location in enumerate(found.values())}
    skipped = {line.image: line.error for line in lines if line.error is not None and line.image in order}
    for line in track(_within_memory(written), "predict", len(todo)):
        append_line(out / LINES, line)
        if line.error is not None:
            log.warning("skipped: %s", line.error)
            skipped[line.image] = line.error
    if lines and options.format == "png":
        write_predictions(
            out / LINES, sorted(read_predictions(out / LINES), key=lambda line: order.get(line.image, -1))
        )
    end(out)
    if len(skipped) == len(found):
        raise DataError(f"none of the {len(found)} images could be read; first: {next(iter(skipped.values()))}")
    ids = tuple(name for name, location in found.items() if str(location) not in skipped)
    return Predictions(out, ids, tuple(skipped.items()), len(found) - len(todo), opened.engine, opened.why)


def _some_pictures(found: dict[str, Location], options: PredictOptions, predictor: Predictor, count: int) -> Pictures:
    """Return the pictures of up to `count` images that can be read, spread over all of them."""
    some = spread(list(found.items()), count)
    read = (read_input(name, location, predictor.resolution, options.max_megapixels)[1] for name, location in some)
    return [picture for picture in read if picture is not None]


def _outcomes(
    predictor: Predictor, run: str | Path, found: dict[str, Location], todo: Sequence[str], options: PredictOptions
) -> Iterator[Outcome]:
    """Return the outcomes of the images in `todo`; computation begins when the first is asked for."""
    plan = Plan(
        classes=predictor.classes,
        resolution=predictor.resolution,
        max_megapixels=options.max_megapixels,
        crf=predictor.crf,
        overlays=options.overlays,
        probabilities=options.probabilities,
    )
    if options.on == "local":
        return local_outcomes(predictor, found, todo, plan)
    return ray_outcomes(run, found, todo, plan, options)


def _write_outcomes(
    outcomes: Iterator[Outcome], out: Path, found: dict[str, Location], todo: Sequence[str], options: PredictOptions
) -> Iterator[PredictionLine]:
    """Write outcomes, and yield each image's line once its files are written."""
    if options.format == "png":
        return map_ahead(outcomes, lambda outcome: write_files(outcome, out), IMAGE_THREADS)
    return write_parts(outcomes, out, len(found) - len(todo), len(todo), options.rows)


def _within_memory(lines: Iterator[PredictionLine]) -> Iterator[PredictionLine]:
    """Yield the lines; if memory runs out, raise an error that names the options to lower."""
    try:
        yield from lines
    except (MemoryError, RuntimeError) as error:
        cause = ran_out(error)
        if not cause:
            raise
        raise RunError(
            f"memory ran out ({cause}); lower --batch, --window or --max-side, and run again with --resume"
        ) from error
