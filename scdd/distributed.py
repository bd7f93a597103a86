"""One process or several: torchrun starts the others; without it there is one of rank 0.

Most work is shared by lists of independent shards, and ranks meet at barriers, so a run makes the
same files on one rank and on many. Training together takes the collectives at the end of the file,
which do nothing in a lone process.
"""

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# A rank may wait for hours while rank 0 trains; torchrun ends it if rank 0 dies.
PATIENCE = datetime.timedelta(days=30)


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes what is not sharded."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that fall to this rank."""
        return items[self.rank :: self.size]

    def barrier(self) -> None:
        """Wait for the other ranks."""
        if self.size > 1:
            dist.barrier()

    def device(self, device: torch.device) -> torch.device:
        """Give every rank of a machine its own GPU, where no number was asked for."""
        if self.size > 1 and device.type == "cuda" and device.index is None:
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
            return device
        return device


@contextmanager
def joined() -> Iterator[World]:
    """Meet the processes that torchrun started; alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """Rank of this process and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def own_rows(count: int) -> slice:
    """Where the `count` rows of this process stand in what `gather` returns."""
    rank, _ = rank_and_size()
    return slice(rank * count, (rank + 1) * count)


def total(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes, without gradient."""
    if rank_and_size()[1] == 1:
        return values
    summed = values.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed)
    return summed


def total_with_gradient(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes; each passes its gradient on to all."""
    return values if rank_and_size()[1] == 1 else _Total.apply(values)


def gather(values: Tensor) -> Tensor:
    """Rows [B, ...] of all processes, one rank after the other, without gradient.

    Every process must bring the same shape.
    """
    size = rank_and_size()[1]
    if size == 1:
        return values
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, values.detach().contiguous())
    return torch.cat(parts)


def gather_with_gradient(values: Tensor) -> Tensor:
    """As `gather`; a row's gradient is the sum of what it gets on every process."""
    return values if rank_and_size()[1] == 1 else _Gather.apply(values)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return total(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.rows = own_rows(len(values))
        return gather(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)[ctx.rows]
