"""Mass labelling by Ray Data: tasks read images, actors hold the network, tasks decide masks, this process writes.

The steps are those of the local engine, on the same shares of the images, and outcomes come in the order of the images,
so that what is written is the same. What a killed worker was at is done again; only this process writes, each image
once.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tagseg.errors import RunError
from tagseg.prediction.chunks import Chunk, chunk_pixels, chunk_size, cut_chunks
from tagseg.prediction.find_images import Location
from tagseg.prediction.outputs import Outcome
from tagseg.prediction.ray_workers import Network, RayRow, chunk_text, finish_row, from_row, read_chunk
from tagseg.settings.predict import PredictOptions
from tagseg.system.process import cores, says_out_of_memory

if TYPE_CHECKING:
    from tagseg.segment.predictor import Predictor

TASK_CPUS = 0.45
"""What a task that reads images or decides masks counts for: half of its time it waits. And no actor counts for that
much: Ray Data would have it do the reading, too, while the network stands still."""

AHEAD = 4
"""Shares an actor that are read or wait for their masks: so many, that no step waits for another."""

MAX_BLOCKS = 20_000
"""Blocks that the shares are handed over in, at most: Ray keeps books on each."""


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
    from tagseg.segment.predictor import adapted_batch

    ray = _ray()

    def rows() -> Iterator[RayRow]:
        actors = choose_actors(ray.cluster_resources(), options)
        batch = adapted_batch(options, actors.device)
        shares = cut_chunks(found, todo, chunk_size(batch, predictor.resolution, options.max_megapixels), batch)
        _instruct(ray.data, byte_budget(predictor, batch, actors, options))
        yield from _data(ray.data, shares, predictor, str(Path(run).resolve()), actors, options).iter_rows()

    return _streamed(ray, rows(), todo)


def _streamed(ray: Any, rows: Iterator[RayRow], todo: Sequence[str]) -> Iterator[Outcome]:
    """The outcomes that rows hold, which are begun with a cluster; none is needed where nothing is to do."""
    if not todo:
        return
    with _cluster(ray):
        try:
            for name, row in zip(todo, rows, strict=True):
                outcome = from_row(row)
                assert outcome.name == name, f"{outcome.name} came where {name} was due"
                yield outcome
        except ray.exceptions.RayError as error:
            lower = "lower --actors, --batch, --window or --max-side, and " if says_out_of_memory(str(error)) else ""
            raise RunError(
                f"--engine ray gave up: {' '.join(str(error).split())[-600:]}; what is written stays: {lower}go on "
                "with the same command and --resume"
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


def byte_budget(predictor: "Predictor", batch: int, actors: Actors, options: PredictOptions) -> int:
    """Return how many bytes of pictures and probabilities may lie between the steps: a few shares for each actor."""
    ids = len(predictor.classes)
    kept = ids if options.crf or options.probabilities else min(ids, 4)
    # A picture has a byte a colour, probabilities are floats.
    return AHEAD * actors.number * chunk_pixels(batch, predictor.resolution) * (3 + 4 * kept)


def _instruct(data: Any, byte_budget: int) -> None:
    """Have Ray Data keep the order and its room, and say nothing: that it begins and ends our own progress shows."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # Unasked, it reads ahead until half of its memory for objects is full.
    context.execution_options.resource_limits = data.ExecutionResources(object_store_memory=byte_budget)


def _data(
    data: Any, shares: list[Chunk], predictor: "Predictor", run: str, actors: Actors, options: PredictOptions
) -> Any:
    """The lazy data set whose rows are outcomes; Ray Data does again what a worker was at that died."""
    folder = os.getcwd()
    read = partial(read_chunk, resolution=predictor.resolution, max_megapixels=options.max_megapixels, folder=folder)
    end = partial(finish_row, classes=predictor.classes, options=options, folder=folder)
    blocks = data.from_items(
        [{"share": chunk_text(share)} for share in shares], override_num_blocks=min(len(shares), MAX_BLOCKS)
    )
    return (
        blocks.map(read, num_cpus=TASK_CPUS)
        .flat_map(
            Network,
            fn_constructor_args=(run, options, actors.device, actors.threads),
            compute=data.ActorPoolStrategy(size=actors.number),
            num_cpus=actors.cpus,
            num_gpus=actors.gpus,
        )
        .map(end, num_cpus=TASK_CPUS)
    )


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
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **({} if address else own))
    except Exception as error:  # Ray raises what it comes across, bare exceptions too
        where = f"no connection to {address} (RAY_ADDRESS)" if address else "no cluster could be started here"
        raise RunError(f"--engine ray: {where}: {' '.join(str(error).split())[:500]}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # Ray has taken it
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
