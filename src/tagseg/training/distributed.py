"""Several processes that train one network together (DDP), each on its share of every batch.

Whatever enters a loss is gathered, so every process computes the loss of the whole batch; the gradient flows only into
the process's own share. The sum of these gradients over the processes is the gradient that a single process computes
from the whole batch. A single process is the special case `ALONE`.
"""

import atexit
import contextlib
import datetime
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from tagseg.errors import RunError
from tagseg.system.process import launched, script_hidden

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others in one collective: a step, a checkpoint, k-means."""

POLL_S = 0.2
"""Seconds between two looks for the next message of the main process."""


class LostProcess(RunError):
    """Another process of this training has ended or does not answer."""


@dataclass(frozen=True)
class BatchShare:
    """A process's share of a batch of `total` images: `own` images, after the `first` images of lower ranks.

    When there are fewer images than processes, some processes have no image of their own. They read another's image,
    so that they take part in all collectives, and their result is discarded.
    """

    first: int
    own: int
    total: int


@dataclass(eq=False)
class Group:
    """The processes that train together: this one's rank, their number (`world_size`; `local_world_size` of them on
    this machine), this one's device (None: a single process, free to choose) and its share of the current batch, which
    `batches` keeps up to date."""

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    device: torch.device | None = None
    share: BatchShare = BatchShare(0, 1, 1)
    accelerator: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def broadcast(self, *tensors: Tensor) -> None:
        """Overwrite tensors with those of the main process."""
        if self.world_size == 1:
            return
        for tensor in tensors:
            raw = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
            with self._name_loss():
                dist.broadcast(raw, 0)

    def broadcast_int(self, value: int = 0) -> int:
        """Return the main process's `value`.

        Raises:
            LostProcess: when another process has ended.
        """
        number = torch.tensor([value], device=self.device)
        self.broadcast(number)
        return int(number)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, as a new tensor without gradient."""
        total = values.detach().clone(memory_format=torch.contiguous_format)
        with self._name_loss():
            dist.all_reduce(total)
        return total

    def sum(self, *values: float) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.world_size == 1:
            return list(values)
        return self.all_reduce(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def any(self, value: bool) -> bool:
        """Tell whether a value is true in at least one process."""
        return self.sum(float(value))[0] > 0

    def all_gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return tensors with equal numbers of rows (`n ...`) extended by the rows of all processes, by rank. Each
        process may have a different number of rows; gradients flow only into a process's own rows.

        Raises:
            LostProcess: when another process has ended.
        """
        if self.world_size == 1:
            return tensors
        tensors = self.own(*tensors)
        counts = [int(count) for count in self._parts(torch.tensor([len(tensors[0])]))]
        return tuple(self._rows(tensor, counts) for tensor in tensors)

    def own(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the rows of this process's own images (`n ...`): all rows, or none (see `BatchShare`)."""
        return tensors if self.share.own else tuple(tensor[:0] for tensor in tensors)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network in DDP: `backward` then sums its gradients over all processes."""
        with self._name_loss(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions of PyTorch prefer another name
            wrapped: nn.Module = self.accelerator.prepare_model(network)
        return wrapped

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the wrapped network from a loss that is equal in all processes, or whose sum over
        the processes is the loss."""
        if self.world_size == 1:
            loss.backward()
            return
        with self._name_loss():
            # DDP computes the mean over processes; the sum is wanted.
            (loss * self.world_size).backward()

    def batches(self, loader: DataLoader[T]) -> Iterator[T]:
        """Yield the batches of a loader that was built for this group, and keep `share` up to date."""
        with script_hidden():  # worker processes start here
            batches = iter(loader)
        return batches if self.world_size == 1 else self._shared(loader, batches)

    def _shared(self, loader: DataLoader[T], batches: Iterator[T]) -> Iterator[T]:
        assert isinstance(loader.batch_sampler, Shares)
        for share, batch in zip(loader.batch_sampler.shares, batches, strict=True):
            self.share = share
            yield batch

    def post(self, message: str) -> None:
        """Leave a message for all other processes, each of which takes it with `next_message`; main process only."""
        with self._name_loss():
            store = _store()
            store.set(f"tagseg/message/{store.add('tagseg/posted', 1)}", message)

    def next_message(self) -> str:
        """Return the main process's next message.

        The process sleeps meanwhile, as long as it takes: it does not wait in a collective, which would time out.

        Raises:
            LostProcess: when the main process has ended.
        """
        with self._name_loss():
            store = _store()
            key = f"tagseg/message/{store.add(f'tagseg/taken/{self.rank}', 1)}"
            while not store.check([key]):
                time.sleep(POLL_S)
            message: str = store.get(key).decode()
            return message

    def _rows(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        raw = own.detach().view(torch.uint8) if own.dtype == torch.bool else own.detach()
        padded = raw.new_zeros(max(counts), *raw.shape[1:])
        padded[: len(raw)] = raw
        parts = [part[:count].view(own.dtype) for part, count in zip(self._parts(padded), counts, strict=True)]
        parts[self.rank] = own
        return torch.cat(parts)

    def _parts(self, own: Tensor) -> list[Tensor]:
        sent = own.to(self.device).contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.world_size)]
        with self._name_loss():
            dist.all_gather(parts, sent)
        return [part.to(own.device) for part in parts]

    @contextlib.contextmanager
    def _name_loss(self) -> Iterator[None]:
        """Turn the error of a lost connection into one that says what to do."""
        try:
            yield
        except RuntimeError as error:
            words = ("gloo", "NCCL", "peer")
            if not isinstance(error, dist.DistError) and not any(word in str(error) for word in words):
                raise
            raise LostProcess(
                f"process {self.rank} of {self.world_size}: another process of this training has ended or does not "
                "answer; its own error, if it wrote one, is above. Run the same command again to resume after the "
                "last finished epoch"
            ) from error


ALONE = Group()
"""A process that trains alone."""


class Shares(Sampler[list[int]]):
    """A process's share of every batch: `shares`, and the indices of the images that it reads for each."""

    def __init__(self, order: Sequence[int], batch: int, drop_last: bool, group: Group) -> None:
        starts = range(0, len(order) - (len(order) % batch if drop_last else 0), batch)
        batches = [order[start : start + batch] for start in starts]
        self.shares = [share_of(len(images), group.rank, group.world_size) for images in batches]
        self.indices = [
            list(images[share.first : share.first + share.own] or images[:1])
            for images, share in zip(batches, self.shares, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.indices)


def share_of(total: int, rank: int, world_size: int) -> BatchShare:
    """Return the share of process `rank` in a batch of `total` images: consecutive images; the sizes of two shares
    differ by at most one."""
    first = total * rank // world_size
    return BatchShare(first, total * (rank + 1) // world_size - first, total)


@contextlib.contextmanager
def open_group(device: str) -> Iterator[Group]:
    """Yield the processes that were launched together (`accelerate launch`, `torchrun`, `--processes`); ALONE when this
    process was launched by itself.

    Within the block only the main process logs.

    Raises:
        ValueError: when `device` is not one that each process can have for itself, or accelerate is set up for another
            way to train than DDP.
        LostProcess: when another process has ended.
    """
    rank, world_size = launched()
    if world_size == 1:
        yield ALONE
        return
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"--device {device}: {world_size} processes were launched, and each needs a device of its own; use auto or "
            "cpu"
        )
    if not dist.is_initialized():  # the first group of a process serves all its trainings
        atexit.register(_close)
    group = Group(rank, world_size, int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    with group._name_loss():
        group.accelerator = _accelerator(cpu=device == "cpu" or (device == "auto" and not torch.cuda.is_available()))
        group.device = group.accelerator.device
    logger = logging.getLogger("tagseg")
    level = logger.level
    if not group.is_main:
        logger.setLevel(logging.ERROR)
    try:
        yield group
    except BaseException:
        _close()  # so that the others learn of it, even if this process continues
        raise
    finally:
        logger.setLevel(level)


def _accelerator(cpu: bool) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

    # Some backbones have weights that feature maps never pass (a static graph would allow for them, too, but not for
    # networks that return records). Buffers are equal, because batch norms see the whole batch.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    group = InitProcessGroupKwargs(backend="gloo" if cpu else None, timeout=TIMEOUT)
    # The number format is our own setting (precision), whatever accelerate's configuration says.
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[parallel, group])
    if accelerator.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(
            f"accelerate is configured for {accelerator.distributed_type.value}; tagseg trains with DDP only"
        )
    return accelerator


def _store() -> Any:
    # PyTorch has no public name for the store by which the processes found each other.
    return dist.distributed_c10d._get_default_store()


def _close() -> None:
    """Leave the group."""
    from accelerate.state import AcceleratorState

    if dist.is_initialized():
        dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
