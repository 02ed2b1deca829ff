"""Masks for images without tags, from a trained segmentation network."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagseg.errors import DataError, RunError
from tagseg.masks.mask_files import write_classes
from tagseg.prediction.find_images import Location, find_images
from tagseg.prediction.local_engine import THREADS, local_outcomes
from tagseg.prediction.outputs import LINES, PredictionLine, append_line, begin, read_lines, write_files, write_lines
from tagseg.prediction.parquet import begin_parts, write_parts
from tagseg.prediction.ray_engine import ray_outcomes
from tagseg.segment.predictor import Predictor, adapted, load
from tagseg.settings.predict import PredictOptions
from tagseg.system.files import remove_temporary
from tagseg.system.process import ran_out
from tagseg.system.progress import Track, map_ahead, silent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """What `predict` wrote: the folder, the ids of the images in it, the unreadable images with their reasons, and how
    many of the ids were there before (resume)."""

    folder: Path
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    kept: int = 0


def predict(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    options: PredictOptions | None = None,
    track: Track = silent,
) -> Predictions:
    """Write a palette mask for every image, named like it, and classes.json and predictions.jsonl, into `out`.

    predictions.jsonl has a line per image in their order (see `image_line`; for an image that cannot be read its file
    and the error), each appended when all of the image's files are there. Lines of other images stay, in front.

    Args:
        run: a run folder with a trained segmenter, or any other folder that `load` takes.
        images: image files, folders (searched with their subfolders) or glob patterns, or URLs of such (fsspec).
        out: folder of the masks.
        options: how to predict, and what to write.
        track: how to report progress.

    Raises:
        DataError: when there is no image, none can be read, an image would be overwritten, or a mask exists and neither
            `force` nor `resume` is given.
        RunError: as `load`, or when memory runs out; when the Ray engine is asked for and cannot be had, or gives up.
        WriteError: when a file cannot be written, because the disk is full for example.
    """
    options = options or PredictOptions()
    # Where others do the work, it is loaded to see that it can be, and what its classes are.
    predictor = adapted(load(run, options.device if options.engine == "local" else "cpu"), options)
    out = Path(out)
    found = find_images([images] if isinstance(images, str | Path) else images, out)
    todo, lines = (begin if options.format == "png" else begin_parts)(found, out, options)
    written = _written(predictor, run, found, todo, out, options)
    if options.resume:
        remove_temporary(out)
    write_classes(out, predictor.classes[1:])
    write_lines(out / LINES, lines)
    order = {str(path): place for place, path in enumerate(found.values())}
    skipped = {line.image: line.error for line in lines if line.error is not None and line.image in order}
    for line in track(_within_memory(written), "predict", len(todo)):
        append_line(out / LINES, line)
        if line.error is not None:
            log.warning("skipped: %s", line.error)
            skipped[line.image] = line.error
    if lines and options.format == "png":
        write_lines(out / LINES, sorted(read_lines(out / LINES), key=lambda line: order.get(line.image, -1)))
    if len(skipped) == len(found):
        raise DataError(f"none of the {len(found)} images could be read; first: {next(iter(skipped.values()))}")
    ids = tuple(name for name, path in found.items() if str(path) not in skipped)
    return Predictions(out, ids, tuple(skipped.items()), len(found) - len(todo))


def _written(
    predictor: Predictor,
    run: str | Path,
    found: dict[str, Location],
    todo: Sequence[str],
    out: Path,
    options: PredictOptions,
) -> Iterator[PredictionLine]:
    """The images' lines, each when its files are written; nothing is begun before the first is asked for."""
    if options.engine == "local":
        outcomes = local_outcomes(predictor, found, todo, options)
    else:
        outcomes = ray_outcomes(predictor, run, found, todo, options)
    if options.format == "png":
        return map_ahead(outcomes, lambda outcome: write_files(outcome, out), THREADS)
    return write_parts(outcomes, out, len(found) - len(todo), len(todo), options.rows)


def _within_memory(lines: Iterator[PredictionLine]) -> Iterator[PredictionLine]:
    """The lines; where memory runs out, the error names the flags to lower."""
    try:
        yield from lines
    except (MemoryError, RuntimeError) as error:
        cause = ran_out(error)
        if not cause:
            raise
        raise RunError(
            f"memory ran out ({cause}); lower --batch, --window or --max-side, and go on with --resume"
        ) from error
