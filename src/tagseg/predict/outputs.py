"""What is written for a predicted image: mask, overlay, probabilities, and its line in predictions.jsonl."""

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from tagseg.errors import DataError
from tagseg.masks.mask_files import mask_file, mask_png
from tagseg.masks.palette import class_colours
from tagseg.predict.find_images import Location, identity
from tagseg.predict.read import Read, open_image
from tagseg.segment.label_pixels import Decided, Labels, candidates, label_pixels, refine
from tagseg.settings.crf import CrfSettings
from tagseg.settings.predict import PredictOptions
from tagseg.system.files import write_atomically, writing
from tagseg.system.untrusted import parse_json, read_bytes

LINES = "predictions.jsonl"
"""The file beside the masks with a line per image."""

PredictionLine = dict[str, Any]

_ROWS = 256
"""Rows that an overlay is painted in at a time."""


def begin(found: Mapping[str, Location], out: Path, options: PredictOptions) -> tuple[list[str], list[PredictionLine]]:
    """Return the names of the images that are to be predicted, and the lines of predictions.jsonl that stay.

    Raises:
        DataError: when a file would overwrite one of the images or lie outside of `out` by a link, or a mask exists and
            neither `force` nor `resume` is given.
    """
    targets = {name: output_files(out, name, options) for name in found}
    for folder in {file.parent for files in targets.values() for file in files}:
        if not folder.resolve().is_relative_to(out.resolve()):
            raise DataError(f"{folder}: is a link out of {out}, where masks go; choose another --out")
    images = {path.resolve(): path for path in found.values() if isinstance(path, Path)}
    for file in (file for files in targets.values() for file in files):
        if file.resolve() in images:
            raise DataError(f"{file}: would overwrite the image {images[file.resolve()]}; choose another --out")
    parquet = next(out.glob("masks-*.parquet"), None)
    if parquet is not None:
        raise DataError(f"{parquet}: exists, masks of --format parquet; choose another --out for PNG files")
    present = [files[0] for files in targets.values() if files[0].exists()]
    if present and not (options.force or options.resume):
        raise DataError(
            f"{present[0]}: exists ({len(present)} masks do); choose another --out, --resume to go on with the images "
            "that have no mask yet, or --force to do all again"
        )
    lines = read_lines(out / LINES)
    masks = {name: files[0].relative_to(out).as_posix() for name, files in targets.items()}
    known = {line.get("mask"): identity(line["image"]) for line in lines} if options.resume else {}
    todo = [
        name
        for name, path in found.items()
        if known.get(masks[name]) != identity(path) or not all(file.exists() for file in targets[name])
    ]
    outdated = {masks[name] for name in todo} | {str(found[name]) for name in todo}
    return todo, [line for line in lines if outdated.isdisjoint((line.get("mask"), line["image"]))]


def output_files(out: Path, name: str, options: PredictOptions) -> list[Path]:
    """Return the files that are written for an image, the mask first."""
    wanted = {
        mask_file(out, name): True,
        overlay_file(out, name): options.overlays,
        probabilities_file(out, name): options.probabilities,
    }
    return [file for file, write in wanted.items() if write]


def overlay_file(out: Path, name: str) -> Path:
    """Return where an image's overlay lies."""
    return out / f"{name}.overlay.jpg"


def probabilities_file(out: Path, name: str) -> Path:
    """Return where an image's probabilities lie."""
    return out / f"{name}.probabilities.npy"


def overlay_jpeg(image: Image.Image, mask: UInt8[np.ndarray, "h w"]) -> bytes:
    """Return an image with its mask laid over, as a JPEG."""
    file = io.BytesIO()
    overlay(image, mask).save(file, "JPEG", quality=90)
    return file.getvalue()


def probabilities_npy(seen: Float32[np.ndarray, "ids y x"]) -> bytes:
    """Return probabilities as a float16 array that `numpy.load` reads."""
    file = io.BytesIO()
    np.save(file, seen.astype(np.float16), allow_pickle=False)
    return file.getvalue()


def overlay(image: Image.Image, mask: UInt8[np.ndarray, "h w"], opacity: float = 0.55) -> Image.Image:
    """Return an RGB image with its mask's colours laid over everything but background."""
    palette, shown = np.array(class_colours(255), np.float32), np.array(image)
    # A strip at a time: as floats an image takes four times its memory.
    for top in range(0, len(mask), _ROWS):
        pixels, ids = shown[top : top + _ROWS], mask[top : top + _ROWS]
        laid = ids > 0
        pixels[laid] = ((1 - opacity) * pixels[laid] + opacity * palette[ids[laid]]).round().astype(np.uint8)
    return Image.fromarray(shown)


def image_line(path: Location, mask: str, decided: Decided, classes: Sequence[str]) -> PredictionLine:
    """Return an image's line: its file, its mask's, its size, and the classes in it, largest first."""
    height, width = decided.mask.shape
    found = [i for i in range(1, len(classes)) if decided.area[i] > 0]
    return {
        "image": str(path),
        "mask": mask,
        "width": width,
        "height": height,
        "classes": [
            {
                "id": i,
                "name": classes[i],
                "area": round(decided.area[i], 4),
                "confidence": round(decided.confidence[i], 4),
            }
            for i in sorted(found, key=lambda i: -decided.area[i])
        ],
    }


def read_lines(file: Path) -> list[PredictionLine]:
    """Return the lines of a predictions.jsonl, none where it does not exist; a last one that breaks off is dropped.

    Raises:
        DataError: naming the line that is none of ours.
    """
    if not file.exists():
        return []
    try:
        whole, _, _ = read_bytes(file).rpartition(b"\n")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}); move it away") from error
    lines = []
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = parse_json(text)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not JSON ({error}); move the file away") from error
        if not isinstance(line, dict) or not isinstance(line.get("image"), str):
            raise DataError(f"{file}, line {number}: names no image; move the file away")
        lines.append(line)
    return lines


def write_lines(file: Path, lines: Iterable[PredictionLine]) -> None:
    """Write a whole predictions.jsonl."""
    write_atomically(file, b"".join(map(_text, lines)))


def append_line(file: Path, line: PredictionLine) -> None:
    """Append a line: whole, or, when it cannot be written, not at all."""
    before = file.stat().st_size
    try:
        with writing(file), file.open("ab") as opened:
            opened.write(_text(line))
    except BaseException:
        os.truncate(file, before)
        raise


def _text(line: PredictionLine) -> bytes:
    # A file name that is no Unicode holds lone surrogates: JSON can escape them, UTF-8 cannot have them.
    return (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Outcome:
    """What an image has come to: its outputs' name, its line, and the content of its files by path below the folder of
    the masks, the mask's first (none where the image could not be read)."""

    name: str
    line: PredictionLine
    files: dict[str, bytes] = field(default_factory=dict)


def needed(seen: Float32[np.ndarray, "ids y x"], options: PredictOptions) -> Labels:
    """Return those of an image's probabilities that `finish_image` needs: all for the dense CRF and where they are
    written, else the few that can be somewhere the likeliest."""
    if options.crf or options.probabilities:
        return Labels(tuple(range(len(seen))), seen, seen)
    return candidates(seen)


def finish_image(one: Read, labels: Labels | None, classes: Sequence[str], options: PredictOptions) -> Outcome:
    """Return what an image comes to, by what `needed` keeps of its probabilities; None where it could not be read."""
    if labels is None:
        return Outcome(one.name, {"image": str(one.path), "error": one.error})
    try:
        # Read once more where it is needed: whole images would fill the memory while they wait for the network.
        image = open_image(one.path, options.max_megapixels) if options.overlays or options.crf else None
    except DataError as error:
        return Outcome(one.name, {"image": str(one.path), "error": str(error)})
    seen = labels.network
    if options.crf:
        assert image is not None, "the dense CRF needs the image"
        labels = refine(seen, image, one.size, CrfSettings())
    elif len(labels.ids) == len(classes):
        labels = candidates(seen)
    decided = label_pixels(labels, one.size, len(classes))
    base = Path()
    mask = mask_file(base, one.name).as_posix()
    files = {mask: mask_png(decided.mask)}
    if image is not None and options.overlays:
        files[overlay_file(base, one.name).as_posix()] = overlay_jpeg(image, decided.mask)
    if options.probabilities:
        files[probabilities_file(base, one.name).as_posix()] = probabilities_npy(seen)
    return Outcome(one.name, image_line(one.path, mask, decided, classes), files)


def write_files(outcome: Outcome, out: Path) -> PredictionLine:
    """Write an image's files and return its line."""
    for name, content in outcome.files.items():
        write_atomically(out / name, content)
    return outcome.line
