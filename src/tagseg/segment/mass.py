"""Mass labelling by Ray Data: tasks read images, actors hold the network, tasks decide masks, this process writes.

The steps are those of the local engine, on the same shares of the images, and outcomes come in the order of the images,
so that what is written is the same. What a killed worker was at is done again; only this process writes, each image
once.
"""

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagseg.run import RunError
from tagseg.segment.decide import Labels
from tagseg.segment.finish import Outcome, finish, needed
from tagseg.segment.inputs import Location
from tagseg.segment.options import PredictOptions
from tagseg.segment.pictures import Read, Resolution, read_picture
from tagseg.segment.remote import is_url
from tagseg.segment.shares import Share, cut, share_size
from tagseg.settings import cores

if TYPE_CHECKING:
    from tagseg.segment.predict import Predictor

TASK_CPUS = 0.45
"""What a task that reads images or decides masks counts for: half of its time it waits. And no actor counts for that
much: Ray Data would have it do the reading, too, while the network stands still."""

MAX_BLOCKS = 20_000
"""Blocks that the shares are handed over in, at most: Ray keeps books on each."""

Row = dict[str, Any]
"""A row of a Ray data set: texts, and arrays as bytes. Nothing of ours is pickled on the way."""


@dataclass(frozen=True)
class Actors:
    """How many processes hold the network, on which device, what each takes of the cluster, and with how many threads
    it computes."""

    number: int
    device: str
    cpus: float
    gpus: int
    threads: int


def ray_outcomes(
    predictor: "Predictor",
    run: str | Path,
    found: dict[str, Location],
    todo: Sequence[str],
    options: PredictOptions,
) -> Iterator[Outcome]:
    """Yield what the images in `todo` come to, in their order, done by a Ray cluster.

    Raises:
        RunError: when Ray is missing, at once; later when there is no cluster, or workers die again and again.
    """
    return _streamed(_ray(), predictor, run, found, todo, options)


def _streamed(
    ray: Any,
    predictor: "Predictor",
    run: str | Path,
    found: dict[str, Location],
    todo: Sequence[str],
    options: PredictOptions,
) -> Iterator[Outcome]:
    if not todo:
        return
    from tagseg.segment.predict import adapted_batch

    with _cluster(ray):
        actors = choose_actors(ray.cluster_resources(), options)
        batch = adapted_batch(options, actors.device)
        size = share_size(batch, predictor.resolution, options.max_megapixels)
        shares = cut(found, todo, size, batch)
        rows = _data(ray, shares, predictor, str(Path(run).resolve()), actors, options).iter_rows()
        try:
            for name, row in zip(todo, rows, strict=True):
                outcome = from_row(row)
                assert outcome.name == name, f"{outcome.name} came where {name} was due"
                yield outcome
        except ray.exceptions.RayError as error:
            raise RunError(
                f"--engine ray gave up: {' '.join(str(error).split())[-600:]}; what is written stays: go on with the "
                "same command and --resume"
            ) from error


def choose_actors(resources: dict[str, float], options: PredictOptions) -> Actors:
    """Return the processes that shall hold the network in a cluster of `resources` (CPU, GPU).

    On CPUs each computes with as many threads as this process would, so that it rounds alike; they count for half, or
    no task would find a place beside them.
    """
    import torch

    gpus, cpus, threads = int(resources.get("GPU", 0)), resources.get("CPU", 1.0), torch.get_num_threads()
    device = options.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device.startswith("cuda"):
        if not gpus:
            raise RunError(f"--device {device}: the Ray cluster has no GPU; expected one, or --device cpu")
        return Actors(options.actors or gpus, "cuda", 1.0, 1, threads)
    number = options.actors or max(int(cpus / threads), 1)
    return Actors(number, device, min(threads / 2, cpus / 2 / number), 0, threads)


def _data(
    ray: Any, shares: list[Share], predictor: "Predictor", run: str, actors: Actors, options: PredictOptions
) -> Any:
    """The lazy data set whose rows are outcomes; Ray Data does again what a worker was at that died."""
    from ray.data import ActorPoolStrategy

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # that it begins and ends; our own progress is shown
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    read = partial(read_share, resolution=predictor.resolution, max_megapixels=options.max_megapixels)
    end = partial(finish_row, classes=predictor.classes, options=options)
    blocks = ray.data.from_items(
        [{"share": share_text(share)} for share in shares], override_num_blocks=min(len(shares), MAX_BLOCKS)
    )
    return (
        blocks.map(read, num_cpus=TASK_CPUS)
        .flat_map(
            Network,
            fn_constructor_args=(run, options, actors.device, actors.threads),
            compute=ActorPoolStrategy(size=actors.number),
            num_cpus=actors.cpus,
            num_gpus=actors.gpus,
        )
        .map(end, num_cpus=TASK_CPUS)
    )


def share_text(share: Share) -> str:
    """Return a share as JSON, in which any file name has a place."""
    images = [[name, str(location)] for name, location in share.images.items()]
    return json.dumps({"images": images, "wanted": sorted(share.wanted)})


def read_share(row: Row, resolution: Resolution, max_megapixels: float) -> Row:
    """Read a share's images: what became of each, and the pictures."""
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

        from tagseg.segment.predict import adapted, load

        torch.set_num_threads(threads)
        self.options = options
        self.predictor = adapted(load(run, device), options)

    def __call__(self, row: Row) -> Iterator[Row]:
        from tagseg.segment.predict import as_tensor, seen_of

        share, pictures = json.loads(row["share"]), _unpacked(row["pictures"])
        reads = [_read(one) for one in share["reads"]]
        images = (
            (one, as_tensor(pictures[str(number)]) if str(number) in pictures else None)
            for number, one in enumerate(reads)
        )
        whole = Share({one.name: one.path for one in reads}, frozenset(share["wanted"]))
        for one, seen in seen_of(whole, images, self.predictor):
            labels = None if seen is None else needed(seen, self.options)
            yield {
                "read": json.dumps([_plain(one), None if labels is None else labels.ids]),
                "seen": b"" if labels is None else _packed({"seen": labels.network}),
            }


def finish_row(row: Row, classes: Sequence[str], options: PredictOptions) -> Row:
    """Make of an image's probabilities what is to be written for it."""
    one, ids = json.loads(row["read"])
    labels = None
    if ids is not None:
        seen = _unpacked(row["seen"])["seen"]
        labels = Labels(tuple(ids), seen, seen)
    return to_row(finish(_read(one), labels, classes, options))


def to_row(outcome: Outcome) -> Row:
    """Return an outcome as a row."""
    about = json.dumps([outcome.name, outcome.line, list(outcome.files)])
    return {"about": about, "files": list(outcome.files.values())}


def from_row(row: Row) -> Outcome:
    """Return the outcome that a row holds."""
    name, line, files = json.loads(row["about"])
    return Outcome(name, line, dict(zip(files, map(bytes, row["files"]), strict=True)))


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


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start one; one that the caller is connected to is used."""
    if ray.is_initialized():
        yield
        return
    # Unasked, Ray would report to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    # One of our own listens to this machine alone. With a single core nothing would find a place beside the network.
    own = {"num_cpus": max(cores(), 2), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **({} if address else own))
    except Exception as error:  # Ray raises what it comes across, bare exceptions too
        where = f"no connection to {address} (RAY_ADDRESS)" if address else "no cluster could be started here"
        raise RunError(f"--engine ray: {where}: {' '.join(str(error).split())[:500]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RunError("--engine ray needs Ray: pip install 'tagseg[ray]'") from error
    return ray
