"""A squeeze of seconds that keeps what it logs, and its states to compare."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scdd.checkpoint import NO_CHECKPOINT, Checkpoint
from scdd.config.objectives import MocoV2Config
from scdd.config.squeeze import SqueezeConfig
from scdd.config.views import ViewConfig
from scdd.datasets import ResidentSource
from scdd.objectives import Objective
from scdd.stages.squeeze import Keep, squeeze
from tests.stages.conftest import CPU, SIZE

MakeSource = Callable[..., ResidentSource]
Line = dict[str, Any]


def settings(**changes: Any) -> SqueezeConfig:
    base: dict[str, Any] = {
        "arch": "resnet8",
        "objective": MocoV2Config(dim=8, queue=32, key_splits=2),
        "epochs": 3,
        "batch": 8,
        "lr": 0.05,
        "knn_every": 0,
        "views": [ViewConfig(count=2, crop_scale=(0.5, 1.0), blur=0.5)],
    }
    return SqueezeConfig.model_validate(base | changes)


def run(
    cfg: SqueezeConfig,
    train: ResidentSource,
    val: ResidentSource,
    seed: int = 0,
    checkpoint: Checkpoint = NO_CHECKPOINT,
    keep: Keep = lambda epoch, objective: None,
) -> tuple[Objective, list[Line]]:
    """Squeeze; return the objective and what was logged."""
    lines: list[Line] = []
    objective = squeeze(
        cfg, train, val, SIZE, seed, CPU, checkpoint, lambda stage, **v: lines.append(v), keep
    )
    return objective, lines


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
