"""The files that are written for each image, and which images still lack theirs."""

import errno
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from tagseg.errors import DataError
from tagseg.masks.mask_files import mask_file
from tagseg.masks.overlay import overlay
from tagseg.prediction.find_images import Location, canonical_location
from tagseg.prediction.lines import LINES, PredictionLine, read_predictions
from tagseg.settings.predict import PredictOptions
from tagseg.system.files import write_atomically


@dataclass(frozen=True)
class Outcome:
    """What is to be written for one image.

    `name` is the name of its outputs, `line` its line of predictions.jsonl. `files` has the contents of its files by
    their paths relative to the output folder, the mask's first; it is empty if the image could not be read.
    """

    name: str
    line: PredictionLine
    files: dict[str, bytes] = field(default_factory=dict)


def pending_images(
    found: Mapping[str, Location], out: Path, options: PredictOptions
) -> tuple[list[str], list[PredictionLine]]:
    """Return the names of the images that are to be predicted, and the lines of predictions.jsonl to keep.

    Raises:
        DataError: if an output would overwrite one of the images or be written outside `out` through a link, or if a
            mask exists and neither `force` nor `resume` is set.
    """
    targets = {name: output_files(out, name, options) for name in found}
    _check_targets([file for files in targets.values() for file in files], found, out)
    # os.path, unlike Path, says of a name that no file can have that it does not exist.
    present = [files[0] for files in targets.values() if os.path.exists(files[0])]
    if present and not (options.force or options.resume):
        raise DataError(
            f"{present[0]}: already exists ({len(present)} of the masks do); choose another --out, add --resume to "
            "predict only the images without a mask, or --force to predict all of them again"
        )
    lines = read_predictions(out / LINES)
    masks = {name: files[0].relative_to(out).as_posix() for name, files in targets.items()}
    known = {line.mask: canonical_location(line.image) for line in lines} if options.resume else {}
    todo = [
        name
        for name, location in found.items()
        if known.get(masks[name]) != canonical_location(location) or not all(map(os.path.exists, targets[name]))
    ]
    outdated = {masks[name] for name in todo} | {str(found[name]) for name in todo}
    return todo, [line for line in lines if outdated.isdisjoint((line.mask, line.image))]


def _check_targets(files: list[Path], found: Mapping[str, Location], out: Path) -> None:
    """Check that no output would be written outside `out`, over an image, or next to masks in Parquet files."""
    for folder in {file.parent for file in files}:
        if not folder.resolve().is_relative_to(out.resolve()):
            raise DataError(f"{folder}: is a link to a folder outside --out {out}; choose another --out")
    images = {path.resolve(): path for path in found.values() if isinstance(path, Path)}
    for file in files:
        if file.resolve() in images:
            raise DataError(f"{file}: would overwrite the image {images[file.resolve()]}; choose another --out")
    parquet = next(out.glob("masks-*.parquet"), None)
    if parquet is not None:
        raise DataError(f"{parquet}: --out already has masks in --format parquet; choose another --out for PNG files")


def output_files(out: Path, name: str, options: PredictOptions) -> list[Path]:
    """Return the files that are written for an image, the mask first."""
    wanted = {
        mask_file(out, name): True,
        overlay_file(out, name): options.overlays,
        probabilities_file(out, name): options.probabilities,
    }
    return [file for file, write in wanted.items() if write]


def overlay_file(out: Path, name: str) -> Path:
    """Return the path of an image's overlay."""
    return out / f"{name}.overlay.jpg"


def probabilities_file(out: Path, name: str) -> Path:
    """Return the path of an image's probabilities."""
    return out / f"{name}.probabilities.npy"


def write_files(outcome: Outcome, out: Path) -> PredictionLine:
    """Write an image's files into `out` and return its line; if a name is longer than the file system allows, that is
    the image's error, and the others go on."""
    for name, content in outcome.files.items():
        try:
            write_atomically(out / name, content)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            why = f"{outcome.line.image}: its mask cannot be written: {name[-60:]} is too long a name; rename the image"
            return PredictionLine(outcome.line.image, error=why)
    return outcome.line


def overlay_jpeg(image: Image.Image, mask: UInt8[np.ndarray, "h w"]) -> bytes:
    """Return an image with its mask painted over it, as a JPEG file."""
    file = io.BytesIO()
    overlay(image, mask).save(file, "JPEG", quality=90)
    return file.getvalue()


def probabilities_npy(probabilities: Float32[np.ndarray, "ids y x"]) -> bytes:
    """Return probabilities as a file that `numpy.load` reads, in float16."""
    file = io.BytesIO()
    np.save(file, probabilities.astype(np.float16), allow_pickle=False)
    return file.getvalue()
