"""Squeeze in one of the processes that torchrun started, for test_squeeze_two_processes.py.

    torchrun ... squeeze_process.py FOLDER NAME [BATCHES]

reads FOLDER/inputs.pt, checkpoints every step to FOLDER/NAME.checkpoint, and writes what it found
to FOLDER/NAME-RANK.pt. The process of rank 1 kills itself after BATCHES batches.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.squeeze import SqueezeConfig
from scdd.datasets.sources import Request, ResidentSource
from scdd.distributed import World, joined
from scdd.errors import ConfigError
from scdd.objectives import Objective
from scdd.stages.squeeze import squeeze


class Mortal(ResidentSource):
    """A source whose process dies after some batches."""

    batches_left: float = math.inf

    def crops(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, ...]]:
        for crops in super().crops(requests):
            if self.batches_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.batches_left -= 1
            yield crops


def main(world: World, folder: Path, name: str, batches: float) -> None:
    """Squeeze, after one attempt with a batch that cannot be shared."""
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    cfg = SqueezeConfig.model_validate(json.loads(inputs["config"]))
    source = Mortal(inputs["images"], inputs["labels"], tuple("abcd"), (0.5,) * 3, (0.2,) * 3)
    found: dict[str, Any] = {"lines": [], "kept": {}}

    def log(stage: str, **values: Any) -> None:
        found["lines"].append(values)

    def keep(epoch: int, objective: Objective) -> None:
        found["kept"][epoch] = {k: v.clone() for k, v in objective.state_dict().items()}

    device, size = torch.device("cpu"), inputs["images"].shape[-1]
    try:
        odd = cfg.model_copy(update={"batch": cfg.batch - 1})
        squeeze(odd, source, source, size, 0, device, NO_CHECKPOINT, log)
    except ConfigError as error:
        found["refusal"] = str(error)
    if world.rank == 1:
        source.batches_left = batches
    checkpoint = Checkpoint(folder / f"{name}.checkpoint", 0 if world.leads else math.inf)
    objective = squeeze(cfg, source, source, size, 0, device, checkpoint, log, keep)
    torch.save(found | {"state": objective.state_dict()}, folder / f"{name}-{world.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined() as world:
        main(world, Path(sys.argv[1]), sys.argv[2], float([*sys.argv, "inf"][3]))
