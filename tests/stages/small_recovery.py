"""What the tests of recovery have in common: views to try, short settings, batches, a kill."""

from typing import Any

import torch
from torch import Tensor

from scdd.config.recover import RecoverConfig
from scdd.stages.recover import Batch
from tests.stages import reference_recover as reference
from tests.stages.conftest import CLASSES

PLAIN = reference.View([], [], (0, 0))
VIEWS: dict[str, dict[str, Any]] = {
    "plain": {"crop": "none"},
    "rolled": {"crop": "none", "roll": 3},
    "one crop for the batch": {"crop": "batch", "crop_scale": (0.2, 1.0)},
    "a crop for each image": {"crop": "sample", "crop_scale": (0.08, 1.0)},
    "crop without flip": {"crop": "sample", "flip": False},
    "crop and roll": {"crop": "batch", "roll": 5},
}


class Killed(Exception):
    """Stands for a kill."""


def settings(**changes: Any) -> RecoverConfig:
    base: dict[str, Any] = {"iterations": 12, "lr": 0.1, "alpha": 0.05, "crop": "none"}
    return RecoverConfig(**(base | changes))


def batch_of(count: int, index: int = 0, start: Tensor | None = None) -> Batch:
    return Batch(index, torch.arange(count), torch.arange(count) % CLASSES, start)
