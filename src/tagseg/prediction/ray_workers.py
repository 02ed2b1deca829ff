"""What the workers of a Ray cluster run: actors that hold the network, and tasks that read chunks and finish images.

Each step takes and returns rows of a Ray data set. On CPUs an actor does everything (`ChunkActor`): pictures and
probabilities, a thousand times the bytes of a mask, stay in its process. Where the network needs a GPU, or the dense
CRF more time than the network, tasks on all CPUs read and finish (`read_chunk`, `NetworkActor`, `finish_row`). The
tasks import no PyTorch, so that their processes start quickly and need little memory; only an actor does.
"""

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagseg.prediction.chunks import Chunk
from tagseg.prediction.finish import finish_image, needed_candidates
from tagseg.prediction.lines import PredictionLine, encoded_line
from tagseg.prediction.outputs import Outcome
from tagseg.prediction.plan import Plan
from tagseg.prediction.read import InputImage, read_input
from tagseg.prediction.remote import is_url
from tagseg.segment.label_pixels import Candidates
from tagseg.segment.resolution import Resolution
from tagseg.settings.predict import PredictOptions
from tagseg.system.records import parse_record

if TYPE_CHECKING:
    from tagseg.segment.predictor import Predictor

RayRow = dict[str, Any]
"""A row of a Ray data set: strings, and arrays as bytes. None of our objects is pickled in a row."""


def chunk_json(chunk: Chunk) -> str:
    """Return a chunk as JSON, which can represent every file name."""
    images = [[name, str(location)] for name, location in chunk.images.items()]
    return json.dumps({"images": images, "wanted": sorted(chunk.wanted)})


class ChunkActor:
    """The local engine in a process of its own: takes a chunk, yields one row per wanted image with its outcome. Paths
    may be relative to `folder`."""

    def __init__(self, run: str, options: PredictOptions, device: str, threads: int, plan: Plan, folder: str) -> None:
        _enter(folder)
        self.plan, self.predictor = plan, _predictor(run, options, device, threads)

    def __call__(self, row: RayRow) -> Iterator[RayRow]:
        from tagseg.prediction.local_engine import local_outcomes

        content = json.loads(row["chunk"])
        images = {name: _location(location) for name, location in content["images"]}
        wanted = frozenset(content["wanted"])
        todo = [name for name in images if name in wanted]
        yield from map(to_row, local_outcomes(self.predictor, images, todo, self.plan))


def read_chunk(row: RayRow, resolution: Resolution, max_megapixels: float, folder: str) -> RayRow:
    """Read the images of a chunk, and return their descriptions and pictures. Paths may be relative to `folder`."""
    _enter(folder)
    chunk = json.loads(row["chunk"])
    images, pictures = [], {}
    for number, (name, location) in enumerate(chunk["images"]):
        image, picture = read_input(name, _location(location), resolution, max_megapixels)
        images.append(_to_list(image))
        if picture is not None:
            pictures[str(number)] = picture
    return {"chunk": json.dumps({"images": images, "wanted": chunk["wanted"]}), "pictures": _to_bytes(pictures)}


class NetworkActor:
    """The network in a process of its own: takes a chunk that was read, yields one row per image with its
    probabilities."""

    def __init__(self, run: str, options: PredictOptions, device: str, threads: int, plan: Plan) -> None:
        self.plan, self.predictor = plan, _predictor(run, options, device, threads)

    def __call__(self, row: RayRow) -> Iterator[RayRow]:
        from tagseg.prediction.batches import chunk_probabilities

        content, pictures = json.loads(row["chunk"]), _to_arrays(row["pictures"])
        images = [_to_image(values) for values in content["images"]]
        chunk = Chunk({image.name: image.location for image in images}, frozenset(content["wanted"]))
        read = ((image, pictures.get(str(number))) for number, image in enumerate(images))
        for image, probabilities in chunk_probabilities(chunk, read, self.predictor):
            candidates = None if probabilities is None else needed_candidates(probabilities, self.plan)
            yield {
                "image": json.dumps([_to_list(image), None if candidates is None else candidates.ids]),
                "probabilities": b"" if candidates is None else _to_bytes({"all": candidates.probabilities}),
            }


def _predictor(run: str, options: PredictOptions, device: str, threads: int) -> "Predictor":
    from tagseg.segment.load import open_predictor

    if options.engine == "torch":
        import torch

        torch.set_num_threads(threads)
    opened = open_predictor(run, dataclasses.replace(options, device=device))
    return dataclasses.replace(opened.predictor, threads=threads)


def finish_row(row: RayRow, plan: Plan, folder: str) -> RayRow:
    """Turn an image's probabilities into what is written for it. Its path may be relative to `folder`."""
    _enter(folder)
    image, ids = json.loads(row["image"])
    candidates = None
    if ids is not None:
        probabilities = _to_arrays(row["probabilities"])["all"]
        candidates = Candidates(tuple(ids), probabilities, probabilities)
    return to_row(finish_image(_to_image(image), candidates, plan))


def to_row(outcome: Outcome) -> RayRow:
    """Return an outcome as a row."""
    about = json.dumps([outcome.name, encoded_line(outcome.line).decode(), list(outcome.files)])
    return {"about": about, "files": list(outcome.files.values())}


def from_row(row: RayRow) -> Outcome:
    """Return the outcome in a row."""
    name, line, files = json.loads(row["about"])
    parsed = parse_record(line.encode(), PredictionLine, lenient=True)
    return Outcome(name, parsed, dict(zip(files, map(bytes, row["files"]), strict=True)))


def _enter(folder: str) -> None:
    """Change to the folder that paths are relative to, if this machine has it: a worker has a process to itself."""
    with contextlib.suppress(OSError):
        os.chdir(folder)


def _location(text: str) -> Path | str:
    return text if is_url(text) else Path(text)


def _to_list(image: InputImage) -> list[Any]:
    return [image.name, str(image.location), image.size, image.error]


def _to_image(values: list[Any]) -> InputImage:
    name, location, (height, width), error = values
    return InputImage(name, _location(location), (height, width), error)


def _to_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _to_arrays(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)
