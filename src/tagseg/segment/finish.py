"""From an image's probabilities to the files that are written for it; needs no PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from tagseg.data.records import DataError
from tagseg.masks.write import mask_file, mask_png
from tagseg.run import write_atomically
from tagseg.segment.decide import Labels, candidates, decide, refine
from tagseg.segment.options import PredictOptions
from tagseg.segment.outputs import (
    Line,
    image_line,
    overlay_file,
    overlay_jpeg,
    probabilities_file,
    probabilities_npy,
)
from tagseg.segment.pictures import Read, open_image
from tagseg.settings_stages import CrfSettings


@dataclass(frozen=True)
class Outcome:
    """What an image has come to: its outputs' name, its line, and the content of its files by path below the folder of
    the masks, the mask's first (none where the image could not be read)."""

    name: str
    line: Line
    files: dict[str, bytes] = field(default_factory=dict)


def needed(seen: Float32[np.ndarray, "ids y x"], options: PredictOptions) -> Labels:
    """Return those of an image's probabilities that `finish` needs: all for the dense CRF and where they are written,
    else the few that can be somewhere the likeliest."""
    if options.crf or options.probabilities:
        return Labels(tuple(range(len(seen))), seen, seen)
    return candidates(seen)


def finish(one: Read, labels: Labels | None, classes: Sequence[str], options: PredictOptions) -> Outcome:
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
    decided = decide(labels, one.size, len(classes))
    base = Path()
    mask = mask_file(base, one.name).as_posix()
    files = {mask: mask_png(decided.mask)}
    if image is not None and options.overlays:
        files[overlay_file(base, one.name).as_posix()] = overlay_jpeg(image, decided.mask)
    if options.probabilities:
        files[probabilities_file(base, one.name).as_posix()] = probabilities_npy(seen)
    return Outcome(one.name, image_line(one.path, mask, decided, classes), files)


def write_files(outcome: Outcome, out: Path) -> Line:
    """Write an image's files and return its line."""
    for name, content in outcome.files.items():
        write_atomically(out / name, content)
    return outcome.line
