"""One process or several: torchrun starts the others; without it there is one of rank 0.

Work is shared by lists of independent shards. Ranks meet at barriers and nowhere else, so a run
makes the same files on one rank and on many.
"""

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

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
            return torch.device("cuda", self.local_rank)
        return device


@contextmanager
def joined() -> Iterator[World]:
    """Meet the processes that torchrun started; alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
