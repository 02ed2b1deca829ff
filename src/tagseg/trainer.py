"""Training of networks in this process, in processes that it starts (`--processes`), or in those launched with it.

The process that drives a command does everything else alone. `python -m tagseg.trainer` is a process that
`--processes` starts. If processes are launched together (`accelerate launch`, `torchrun`), the main one drives; the
others train when it asks them to, and sleep in between.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import Tensor

from tagseg.data.prepare import prepare
from tagseg.data.records import Dataset
from tagseg.errors import RunError
from tagseg.masks.mask_files import mask_file
from tagseg.rca.train import load_network, train
from tagseg.run.folder import Run
from tagseg.run.lock import share_lock
from tagseg.run.memory import memory_named
from tagseg.segment.train import train_segmenter
from tagseg.settings.settings import Settings
from tagseg.system.process import launched
from tagseg.system.progress import Track, silent
from tagseg.training.checkpoint import is_trained
from tagseg.training.distributed import ALONE, Group, LostProcess, open_group
from tagseg.training.processes import require_devices, run_processes, serve

_FINISHED, _FAILED = "finished", "failed"
"""The last message of the main process."""


class Job(msgspec.Struct, frozen=True):
    """A network to train.

    network: which network. run: the run folder. folder: where the network is saved. masks: the folder of masks to learn
    from; empty for tags. labelled: whether training images without a mask in that folder are left out. steps: of a
    segmentation network whose epochs are not set.
    """

    network: Literal["classifier", "segmenter"]
    run: str
    folder: str
    masks: str = ""
    labelled: bool = False
    steps: int = 1


@dataclass(frozen=True)
class Trainer:
    """Trains the networks of a run, alone or together with other processes (see `open_trainer`)."""

    run: Run
    processes: int = 1
    group: Group = ALONE

    def train_classifier(self, dataset: Dataset, track: Track = silent) -> None:
        """Train the classification network, see `tagseg.rca.train.train`."""
        self._train(Job("classifier", str(self.run.root), str(self.run.network)), dataset, track)

    def train_segmenter(
        self, dataset: Dataset, masks: Path, settings: Settings, folder: Path, track: Track = silent
    ) -> None:
        """Train a segmentation network, see `tagseg.segment.train.train_segmenter`; except for segment.steps, the
        settings are the run's."""
        steps, labelled = settings.segment.steps, masks != self.run.masks
        job = Job("segmenter", str(self.run.root), str(folder), str(masks), labelled, steps)
        self._train(job, dataset, track)

    def _train(self, job: Job, dataset: Dataset, track: Track) -> None:
        text = msgspec.json.encode(job).decode()
        if self.processes > 1:
            run_processes("tagseg.trainer", text, self.processes, track)
            return
        if self.group.world_size > 1:
            self.group.post(text)
        _perform(job, dataset, track, self.group)


@contextlib.contextmanager
def open_trainer(run: Run, device: str, processes: int = 1) -> Iterator[Trainer]:
    """Yield the trainer of a run, which uses this process, `processes` that it starts, or those launched with it.

    Raises:
        ValueError: when the machine does not support that many processes, or when `processes` is given although
            processes were launched together.
    """
    world_size = launched()[1]
    if world_size == 1:
        if processes != 1:
            require_devices(processes, device)
        yield Trainer(run, processes)
        return
    if processes != 1:
        raise ValueError(
            f"--processes {processes} cannot be combined with accelerate launch, which started {world_size} processes; "
            "leave out one of the two"
        )
    with open_group(device) as group:
        try:
            yield Trainer(run, group=group)
        except BaseException:
            with contextlib.suppress(RunError):
                group.post(_FAILED)
            raise
        group.post(_FINISHED)
        group.broadcast_int()  # waits until all have read the message, because the store ends with this process


def take_part(device: str) -> bool:
    """Train along with the main process until it has finished, and return True; return False in a main process.

    Raises:
        RunError: when another process has ended or failed, or this one does not see the run folder.
    """
    if launched()[0] == 0:
        return False
    with open_group(device) as group:
        while (text := group.next_message()) != _FINISHED:
            if text == _FAILED:
                raise LostProcess(f"process {group.rank} of {group.world_size}: the main process has failed")
            job = msgspec.json.decode(text, type=Job)
            _perform(job, _read_dataset(job), silent, group)
        group.broadcast_int()
    return True


def _perform(job: Job, dataset: Dataset, track: Track, group: Group) -> None:
    run, folder = Run(Path(job.run)), Path(job.folder)
    settings = run.settings()
    with memory_named(run.root, "train" if job.network == "classifier" else "segment", settings):
        if job.network == "classifier":
            train(dataset, settings, folder, track, group)
        else:
            settings = replace(settings, segment=replace(settings.segment, steps=job.steps))
            start = _classifier(run) if settings.segment.start == "classifier" else None
            train_segmenter(dataset, Path(job.masks), settings, folder, track, group, start)


def _classifier(run: Run) -> dict[str, Tensor]:
    """Return the tensors of the backbone of the run's classification network."""
    if not is_trained(run.network):
        raise RunError(
            f"{run.root}: with segment.start = classifier the segmentation network starts at the classification "
            f"network, which is not trained yet; run `tagseg train {run.root}` first"
        )
    return load_network(run.network, torch.device("cpu"))[0].backbone.model.state_dict()


def _read_dataset(job: Job) -> Dataset:
    """Return the data set of a job, the same as in the driving process."""
    run = Run(Path(job.run))
    if not run.data_file.exists():
        raise RunError(f"{run.data_file}: missing; all machines must see the same run folder")
    dataset = prepare(run).dataset
    if not job.labelled:
        return dataset
    masks, samples = Path(job.masks), dataset.samples
    return replace(
        dataset, samples=tuple(one for one in samples if one.split != "train" or mask_file(masks, one.id).exists())
    )


def _serve(text: str, track: Track) -> None:
    job = msgspec.json.decode(text, type=Job)
    settings = Run(Path(job.run)).settings()
    with share_lock(Path(job.run)), open_group(settings.device) as group:
        _perform(job, _read_dataset(job), track, group)


if __name__ == "__main__":
    serve(_serve)
