"""The Ray engine: actors of a Ray cluster hold the network, this process writes.

On CPUs an actor reads images and makes masks itself, as the local engine does; with GPUs, or with the dense CRF, tasks
on all CPUs do.

The steps and the chunks are those of the local engine, and outcomes arrive in the order of the images, so the same
bytes are written. Ray repeats what a worker was doing when it was killed. Only this process writes, each image once.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tagseg.errors import RunError
from tagseg.prediction.chunks import Chunk, chunk_pixels, chunk_size, cut_chunks
from tagseg.prediction.find_images import Location
from tagseg.prediction.outputs import Outcome
from tagseg.prediction.plan import Plan
from tagseg.prediction.ray_workers import (
    ChunkActor,
    NetworkActor,
    RayRow,
    chunk_json,
    finish_row,
    from_row,
    read_chunk,
)
from tagseg.run.hub import is_hub_address
from tagseg.segment.predictor import batch_size
from tagseg.settings.predict import PredictOptions
from tagseg.system.process import cores, says_out_of_memory

TASK_CPUS = 0.45
"""CPUs that a task which reads images or makes masks counts for: it waits half of its time. No actor may count for the
same number, or Ray Data would fuse it with the reading task, and the network would wait while images are read."""

CHUNKS_PER_ACTOR = 4
"""Chunks per actor that are read or wait for their masks: enough that no step waits for another."""

MAX_BLOCKS = 20_000
"""Most blocks that the chunks are handed to Ray in: it keeps a record of each."""


@dataclass(frozen=True)
class Actors:
    """How many processes hold the network, on which device, the CPUs and GPUs that each reserves in the cluster, and
    the number of threads it computes with."""

    number: int
    device: str
    cpus: float
    gpus: int
    threads: int


def ray_outcomes(
    run: str | Path, found: dict[str, Location], todo: Sequence[str], plan: Plan, options: PredictOptions
) -> Iterator[Outcome]:
    """Yield the outcomes of the images in `todo`, in their order, computed by a Ray cluster.

    Raises:
        RunError: at once if Ray is not installed; later if there is no cluster, or if workers die repeatedly.
    """
    ray = _import_ray()

    def rows() -> Iterator[RayRow]:
        actors = choose_actors(ray.cluster_resources(), options.device, options.actors)
        batch = batch_size(options.batch, actors.device)
        chunks = cut_chunks(found, todo, chunk_size(batch, plan.resolution, plan.max_megapixels), batch)
        network = (
            str(run if is_hub_address(run) else Path(run).resolve()),
            options,
            actors.device,
            actors.threads,
            plan,
        )
        _configure_ray_data(ray.data, byte_budget(plan, batch, actors.number))
        yield from _dataset(ray.data, chunks, plan, network, actors).iter_rows()

    return _outcomes(ray, rows(), todo)


def _outcomes(ray: Any, rows: Iterator[RayRow], todo: Sequence[str]) -> Iterator[Outcome]:
    """Connect to a cluster and yield the outcomes in the rows; without images to predict no cluster is needed."""
    if not todo:
        return
    with _cluster(ray):
        try:
            for name, row in zip(todo, rows, strict=True):
                outcome = from_row(row)
                assert outcome.name == name, f"got {outcome.name}, expected {name}"
                yield outcome
        except ray.exceptions.RayError as error:
            lower = "lower --actors, --batch, --window or --max-side, and " if says_out_of_memory(str(error)) else ""
            raise RunError(
                f"--on ray stopped: {' '.join(str(error).split())[-600:]}. Finished images are kept: {lower}run "
                "the same command with --resume"
            ) from error


def starts_cluster() -> bool:
    """Tell whether `ray_outcomes` would start a cluster of its own, on this machine."""
    ray = sys.modules.get("ray")
    return not os.environ.get("RAY_ADDRESS") and not (ray is not None and ray.is_initialized())


def choose_actors(resources: dict[str, float], device: str = "auto", number: int = 0) -> Actors:
    """Return the processes that hold the network in a cluster of `resources` (CPU, GPU); `number` 0 is automatic.

    On CPUs each computes with as many threads as this process would, so that results round alike. They reserve half of
    these CPUs, to leave room for the tasks.
    """
    gpus, cpus, threads = int(resources.get("GPU", 0)), resources.get("CPU", 1.0), _torch_threads()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device.startswith("cuda"):
        if not gpus:
            raise RunError(f"--device {device}: the Ray cluster has no GPU; add one, or use --device cpu")
        return Actors(number or gpus, "cuda", 1.0, 1, threads)
    number = number or max(int(cpus / threads), 1)
    return Actors(number, device, min(threads / 2, cpus / 2 / number), 0, threads)


def _torch_threads() -> int:
    import torch  # other engines do without it

    return torch.get_num_threads()


def byte_budget(plan: Plan, batch: int, actors: int) -> int:
    """Return the bytes of pictures and probabilities that may wait between the steps: a few chunks per actor."""
    ids = len(plan.classes)
    kept = ids if plan.needs_all_probabilities else min(ids, 4)
    # One byte per colour of a pixel, four per probability.
    return CHUNKS_PER_ACTOR * actors * chunk_pixels(batch, plan.resolution) * (3 + 4 * kept)


def _configure_ray_data(data: Any, byte_budget: int) -> None:
    """Make Ray Data keep the order and stay within its memory, and silence it: we report progress ourselves."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # By default it reads ahead until half of its object store is full.
    context.execution_options.resource_limits = data.ExecutionResources(object_store_memory=byte_budget)


def _dataset(data: Any, chunks: list[Chunk], plan: Plan, network: tuple[Any, ...], actors: Actors) -> Any:
    """Return the lazy data set whose rows are outcomes; Ray Data repeats what a dead worker was doing."""
    folder = os.getcwd()
    pool = {"compute": data.ActorPoolStrategy(size=actors.number), "num_cpus": actors.cpus, "num_gpus": actors.gpus}
    read = partial(read_chunk, resolution=plan.resolution, max_megapixels=plan.max_megapixels, folder=folder)
    blocks = data.from_items(
        [{"chunk": chunk_json(chunk)} for chunk in chunks], override_num_blocks=min(len(chunks), MAX_BLOCKS)
    )
    # Else pictures and probabilities would pass from process to process, which costs a fifth of the throughput.
    if not actors.gpus and plan.crf is None:
        return blocks.flat_map(ChunkActor, fn_constructor_args=(*network, folder), **pool)
    return (
        blocks.map(read, num_cpus=TASK_CPUS)
        .flat_map(NetworkActor, fn_constructor_args=network, **pool)
        .map(partial(finish_row, plan=plan, folder=folder), num_cpus=TASK_CPUS)
    )


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start one; an existing connection of the caller is used."""
    if ray.is_initialized():
        yield
        return
    # By default Ray sends usage statistics to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    # Our own cluster listens on this machine only. With one CPU there would be no room for tasks next to the network.
    own = {"num_cpus": max(cores(), 2), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **({} if address else own))
    except Exception as error:  # Ray passes on whatever it meets, including bare exceptions
        where = f"cannot connect to {address} (RAY_ADDRESS)" if address else "cannot start a cluster here"
        raise RunError(f"--on ray: {where}: {' '.join(str(error).split())[:500]}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # Ray has replaced the handler
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RunError("--on ray needs Ray: pip install 'tagseg[ray]'") from error
    return ray
