"""The steps of mass labelling, each from rows to rows, as processes of their own do them: read, see, finish."""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tagseg.prediction.chunks import Chunk
from tagseg.prediction.outputs import Outcome, PredictionLine, finish_image, line_bytes, needed
from tagseg.prediction.read import Read, read_picture
from tagseg.prediction.remote import is_url
from tagseg.segment.label_pixels import Labels
from tagseg.segment.resolution import Resolution
from tagseg.settings.predict import PredictOptions
from tagseg.system.records import parse_record

RayRow = dict[str, Any]
"""A row of a Ray data set: texts, and arrays as bytes. Nothing of ours is pickled on the way."""


def chunk_text(share: Chunk) -> str:
    """Return a share as JSON, in which any file name has a place."""
    images = [[name, str(location)] for name, location in share.images.items()]
    return json.dumps({"images": images, "wanted": sorted(share.wanted)})


def read_chunk(row: RayRow, resolution: Resolution, max_megapixels: float, folder: str) -> RayRow:
    """Read a share's images: what became of each, and the pictures. Paths may be relative to `folder`."""
    _enter(folder)
    share = json.loads(row["share"])
    reads, pictures = [], {}
    for number, (name, location) in enumerate(share["images"]):
        place = location if is_url(location) else Path(location)
        one, picture = read_picture(name, place, resolution, max_megapixels)
        reads.append(_plain(one))
        if picture is not None:
            pictures[str(number)] = picture
    return {"share": json.dumps({"reads": reads, "wanted": share["wanted"]}), "pictures": _packed(pictures)}


class Network:
    """The network in a process of its own: from a share that was read to its images' probabilities, one a row."""

    def __init__(self, run: str, options: PredictOptions, device: str, threads: int) -> None:
        import torch

        from tagseg.segment.predictor import adapted, load

        torch.set_num_threads(threads)
        self.options = options
        self.predictor = adapted(load(run, device), options)

    def __call__(self, row: RayRow) -> Iterator[RayRow]:
        from tagseg.prediction.local_engine import seen_of
        from tagseg.segment.infer import as_tensor

        share, pictures = json.loads(row["share"]), _unpacked(row["pictures"])
        reads = [_read(one) for one in share["reads"]]
        images = (
            (one, as_tensor(pictures[str(number)]) if str(number) in pictures else None)
            for number, one in enumerate(reads)
        )
        whole = Chunk({one.name: one.path for one in reads}, frozenset(share["wanted"]))
        for one, seen in seen_of(whole, images, self.predictor):
            labels = None if seen is None else needed(seen, self.options)
            yield {
                "read": json.dumps([_plain(one), None if labels is None else labels.ids]),
                "seen": b"" if labels is None else _packed({"seen": labels.network}),
            }


def finish_row(row: RayRow, classes: Sequence[str], options: PredictOptions, folder: str) -> RayRow:
    """Make of an image's probabilities what is to be written for it. Its path may be relative to `folder`."""
    _enter(folder)
    one, ids = json.loads(row["read"])
    labels = None
    if ids is not None:
        seen = _unpacked(row["seen"])["seen"]
        labels = Labels(tuple(ids), seen, seen)
    return to_row(finish_image(_read(one), labels, classes, options))


def to_row(outcome: Outcome) -> RayRow:
    """Return an outcome as a row."""
    about = json.dumps([outcome.name, line_bytes(outcome.line).decode(), list(outcome.files)])
    return {"about": about, "files": list(outcome.files.values())}


def from_row(row: RayRow) -> Outcome:
    """Return the outcome that a row holds."""
    name, line, files = json.loads(row["about"])
    parsed = parse_record(line.encode(), PredictionLine, lenient=True)
    return Outcome(name, parsed, dict(zip(files, map(bytes, row["files"]), strict=True)))


def _enter(folder: str) -> None:
    """Change to the folder that paths are relative to, where this machine has it: the process is a worker's own."""
    with contextlib.suppress(OSError):
        os.chdir(folder)


def _plain(one: Read) -> list[Any]:
    return [one.name, str(one.path), one.size, one.error]


def _read(plain: list[Any]) -> Read:
    name, location, (height, width), error = plain
    return Read(name, location if is_url(location) else Path(location), (height, width), error)


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _unpacked(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)
