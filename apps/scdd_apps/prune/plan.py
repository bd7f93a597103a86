"""What `scdd-apps prune` is asked to do, checked before anything is trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from scdd.config.posttrain import PosttrainConfig
from scdd.errors import ConfigError
from scdd.models import create_model
from scdd.posttraining import Labels
from scdd_apps.files import Inputs, settings_with
from scdd_apps.prune.channels import check_reachable
from scdd_apps.prune.surgery import coupled_channels

PRUNABLE = ("vgg11", "resnet18")
SGD = (
    "optimizer=sgd",
    "momentum=0.9",
    "weight_decay=0.0005",
    "decay=matrices",
    "loss=kl",
    "scale_loss=true",
    "hard_weight=0",
    "lr_schedule=cosine",
    "stretch=1.0",
    "ema=0",
    "schedule=step",
    "warmup_epochs=0",
    "epochs=200",
)
"""Adam would divide the L1 term by its own size; BatchNorm scales have no other decay."""
SPARSITY = (*SGD, "lr=0.05")
FINE_TUNING = (*SGD, "lr=0.01")


@dataclass(frozen=True)
class Plan:
    """One pruning experiment: which network, which ratios, how it is trained."""

    arch: str
    ratios: tuple[float, ...]
    """Ascending; 0, the control under the same budget, is always there."""
    seeds: int
    pull: float
    labels: Labels
    sparsity: PosttrainConfig
    fine_tuning: PosttrainConfig
    """Both with the same batch."""


def make_plan(
    inputs: Inputs,
    arch: str,
    ratios: Sequence[float],
    seeds: int,
    epochs: int | None,
    pull: float,
    labels: Labels,
    overrides: Sequence[str],
) -> Plan:
    """Check the options of the command and settle the two trainings.

    Raises:
        ConfigError: if one cannot be used.
        RunError: if a ratio is out of reach.
    """
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise ConfigError(f"--ratio {ratio:g}: give a share of the channels in [0, 1)")
    if not 0 <= pull < math.inf:
        raise ConfigError(f"--pull {pull:g}: give a number from 0 up; a scale starts at 1")
    given = [*overrides, *([f"epochs={epochs}"] if epochs else [])]
    sparsity, fine_tuning = (
        settings_with(inputs.training, [f"arch={arch}", *own], given)
        for own in (SPARSITY, FINE_TUNING)
    )
    if sparsity.optimizer != "sgd" or sparsity.momentum == 1:
        raise ConfigError(
            "--set: sparsity training wants optimizer sgd and a momentum below 1, or the pull of "
            "L1 has no meaning"
        )
    _check_prunable(arch, inputs, ratios)
    every = tuple(sorted({0.0, *ratios}))
    return Plan(arch, every, seeds, pull, labels, sparsity, fine_tuning)


def _check_prunable(arch: str, inputs: Inputs, ratios: Sequence[float]) -> None:
    with torch.random.fork_rng(devices=[]):
        model = create_model(arch, len(inputs.header.class_names), inputs.header.image_size)
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ConfigError(
            f"--arch {arch}: has no BatchNorm layer, and slimming ranks channels by the scales of "
            f"BatchNorm; choose among {', '.join(PRUNABLE)}"
        )
    if arch not in PRUNABLE:
        raise ConfigError(
            f"--arch {arch}: cannot be pruned yet; choose among {', '.join(PRUNABLE)}"
        )
    layers = coupled_channels(model, inputs.header.image_size)
    for ratio in ratios:
        check_reachable(arch, layers, ratio)
