"""Several processes that train together, each with its share of every batch; a process by itself is a special case.

What enters a loss is gathered, so that every process computes the loss of the whole batch; its gradient flows into its
own share alone. The sum of these gradients, which DDP takes, is the gradient that one process with the whole batch has.
"""

import atexit
import contextlib
import datetime
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from tagseg.errors import RunError
from tagseg.system.process import launched

T = TypeVar("T")

STEP = datetime.timedelta(minutes=30)
"""How long a process waits for the others in a step, a checkpoint or k-means."""

STAGE = datetime.timedelta(days=365)
"""How long it waits for what the main process does alone: localise and masks may take days."""


@dataclass(frozen=True)
class BatchShare:
    """Which images of a batch of `total` a process has: `own` of them, behind the `first` that come before.

    Where there are fewer images than processes, some have none of their own. They look at another's image, so that they
    take part in all that is done together, and nothing comes of it.
    """

    first: int
    own: int
    total: int


@dataclass
class Ranks:
    """The processes that train together: this one's number, how many there are (on this machine: `local`), its device
    (None: it is alone, and free to choose) and its share of the batch at hand, which `batches` keeps up to date."""

    number: int = 0
    count: int = 1
    local: int = 1
    device: torch.device | None = None
    share: BatchShare = BatchShare(0, 1, 1)
    accelerator: Any = None
    waiting: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes files, logs, and does what is not shared."""
        return self.number == 0

    def agree(self, value: int = 0) -> int:
        """Return the main process's `value`, for which the others wait however long it works alone meanwhile.

        Raises:
            RunError: when another process has ended.
        """
        if self.count == 1:
            return value
        told = torch.tensor([value])
        with _lost(self):
            dist.broadcast(told, 0, group=self.waiting)
        return int(told)

    def join(self, network: nn.Module) -> nn.Module:
        """Return the network as it is to be called in training: its gradients are then sums over all processes, and its
        batch norms and dropout see the whole batch."""
        if self.count == 1:
            return network
        self.agree()
        from tagseg.training.shared_layers import share_layers

        share_layers(network, self)
        with _lost(self), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a name that newer versions of PyTorch would rather read
            joined: nn.Module = self.accelerator.prepare_model(network)
        return joined

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the joined network by a loss that all processes have computed, or whose parts they
        have and which is their sum."""
        if self.count == 1:
            loss.backward()
            return
        with _lost(self):
            # DDP takes the mean over processes, and the sum is wanted.
            (loss * self.count).backward()

    def batches(self, loader: DataLoader[T]) -> Iterator[T]:
        """Yield the batches of a loader that was made for these processes."""
        if self.count == 1:
            return iter(loader)
        return self._shared(loader)

    def _shared(self, loader: DataLoader[T]) -> Iterator[T]:
        assert isinstance(loader.batch_sampler, Shares)
        for share, batch in zip(loader.batch_sampler.shares, loader, strict=True):
            self.share = share
            yield batch

    def own(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return what a process has seen (`n ...`), or nothing where none of it was its own (see `BatchShare`)."""
        return tensors if self.share.own else tuple(tensor[:0] for tensor in tensors)

    def gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return tensors of as many rows (`n ...`) with the rows of all processes in their order. Each may have another
        number of rows, and gradients flow into a process's own alone.

        Raises:
            RunError: when another process has ended.
        """
        if self.count == 1:
            return tensors
        tensors = self.own(*tensors)
        counts = [int(count) for count in self._parts(torch.tensor([len(tensors[0])]))]
        return tuple(self._rows(tensor, counts) for tensor in tensors)

    def total(self, *values: float) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.count == 1:
            return list(values)
        return self.add(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def any(self, value: bool) -> bool:
        """Tell whether a value is true in one of the processes."""
        return self.total(float(value))[0] > 0

    def add(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, as a new tensor without a gradient."""
        total = values.detach().clone(memory_format=torch.contiguous_format)
        with _lost(self):
            dist.all_reduce(total)
        return total

    def copy_main(self, *tensors: Tensor) -> None:
        """Overwrite tensors with those of the main process."""
        if self.count == 1:
            return
        for tensor in tensors:
            raw = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
            with _lost(self):
                dist.broadcast(raw, 0)

    def _rows(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        raw = own.detach().view(torch.uint8) if own.dtype == torch.bool else own.detach()
        padded = raw.new_zeros(max(counts), *raw.shape[1:])
        padded[: len(raw)] = raw
        parts = [part[:count].view(own.dtype) for part, count in zip(self._parts(padded), counts, strict=True)]
        parts[self.number] = own
        return torch.cat(parts)

    def _parts(self, own: Tensor) -> list[Tensor]:
        sent = own.to(self.device).contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.count)]
        with _lost(self):
            dist.all_gather(parts, sent)
        return [part.to(own.device) for part in parts]


ALONE = Ranks()
"""A process that trains by itself."""


class Shares(Sampler[list[int]]):
    """A process's share of every batch: `shares`, and the numbers of the images that it reads for each."""

    def __init__(self, order: Sequence[int], batch: int, drop_last: bool, ranks: Ranks) -> None:
        starts = range(0, len(order) - (len(order) % batch if drop_last else 0), batch)
        wholes = [order[start : start + batch] for start in starts]
        self.shares = [share_of(len(whole), ranks.number, ranks.count) for whole in wholes]
        self.numbers = [
            list(whole[share.first : share.first + share.own] or whole[:1])
            for whole, share in zip(wholes, self.shares, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.numbers)


def share_of(total: int, number: int, count: int) -> BatchShare:
    """Return the share that process `number` of `count` has of a batch of `total` images: neighbours, as many for each
    as for any other or one more."""
    first = total * number // count
    return BatchShare(first, total * (number + 1) // count - first, total)


@contextlib.contextmanager
def open_ranks(device: str) -> Iterator[Ranks]:
    """Yield the processes that were launched together by `accelerate launch` or `torchrun`; one by itself is ALONE.

    Within, only the main process logs. At the end all wait for it.

    Raises:
        ValueError: when `device` is not one that each process can have for itself, or accelerate is set up for another
            way to train than DDP.
        RunError: when another process has ended.
    """
    number, count = launched()
    if count == 1:
        yield ALONE
        return
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {device}: {count} processes were launched, each takes a device; try auto or cpu")
    if not dist.is_initialized():  # once a process: what it opens first serves all that it trains
        atexit.register(_close)
    ranks = Ranks(number, count, int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    with _lost(ranks):
        accelerator = _accelerator(cpu=device == "cpu" or (device == "auto" and not torch.cuda.is_available()))
        ranks.accelerator, ranks.device, ranks.waiting = accelerator, accelerator.device, _waiting_group()
    logger = logging.getLogger("tagseg")
    level = logger.level
    if not ranks.main:
        logger.setLevel(logging.ERROR)
    try:
        yield ranks
        ranks.agree()
        dist.destroy_process_group(ranks.waiting)
    except BaseException:
        _close()  # so that the others learn of it, even if this process goes on
        raise
    finally:
        logger.setLevel(level)


def _accelerator(cpu: bool) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

    # Some backbones have weights that feature maps never pass (a static graph would allow for them, too, but not for
    # networks that return records). Buffers are alike, for batch norms see the whole batch.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    group = InitProcessGroupKwargs(backend="gloo" if cpu else None, timeout=STEP)
    # The number format is a setting of ours (precision), whatever accelerate's own configuration says.
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[parallel, group])
    if accelerator.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(f"accelerate is set up for {accelerator.distributed_type.value}; tagseg trains with DDP alone")
    return accelerator


def _waiting_group() -> Any:
    """Make the group in which processes wait for the main one: for days, but not for one that never joins the group."""
    group = dist.new_group(backend="gloo", timeout=STEP)
    # Older versions of PyTorch know it by the second name alone.
    change: Any = getattr(dist, "set_timeout", None) or getattr(dist.distributed_c10d, "_set_pg_timeout")  # noqa: B009
    change(STAGE, group)
    return group


def _close() -> None:
    """Take leave of the other processes."""
    from accelerate.state import AcceleratorState

    if dist.is_initialized():
        dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


@contextlib.contextmanager
def _lost(ranks: Ranks) -> Iterator[None]:
    """Turn what a lost connection raises into a message that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in ("gloo", "NCCL", "peer")):
            raise
        raise RunError(
            f"process {ranks.number} of {ranks.count}: another process of this training has ended, or does not answer; "
            f"if it said why, that stands above. Run the same command again to continue behind the last finished epoch"
        ) from error
