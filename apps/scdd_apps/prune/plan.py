"""What `scdd-apps prune` is asked to do, checked before anything is trained."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scdd.config.posttrain import PosttrainConfig
from scdd.errors import ConfigError
from scdd.files import sha256_of
from scdd.models import create_model
from scdd.posttraining import Labels
from scdd_apps.files import Inputs, settings_with, training_identity
from scdd_apps.prune.channels import check_reachable
from scdd_apps.prune.start import load_start
from scdd_apps.prune.surgery import coupled_channels
from scdd_apps.prune.variants import (
    FINE_TUNING,
    FIRST,
    VARIANTS,
    WITHOUT_BATCHNORM,
    Criterion,
    Variant,
)

PULL = 1.5
PRUNABLE = (
    "vgg11",
    *("resnet18", "resnet50", "resnet101"),
    *("resnet8", "resnet8x2", "resnet8x4", "resnet14", "resnet20"),
    "mobilenet_v3_large",
    *("regnet_x_400mf", "regnet_x_8gf"),
    *("squeezenet1_0", "vit_tiny"),
)


@dataclass(frozen=True)
class Options:
    """The options of the command, as they were given."""

    arch: str = "vgg11"
    ratios: Sequence[float] = (0.5,)
    seeds: int = 1
    epochs: int | None = None
    pull: float | None = None
    labels: Labels = "soft"
    overrides: Sequence[str] = ()
    variant: str = "synth"
    checkpoint: Path | None = None
    criterion: str | None = None
    iterations: int = 1
    round_to: int = 1
    bn_recal: bool = True


@dataclass(frozen=True)
class Plan:
    """One pruning experiment: which network, which ratios, how it is trained."""

    arch: str
    ratios: tuple[float, ...]
    """Ascending; 0, the control under the same budget, is always there."""
    seeds: int
    pull: float
    labels: Labels
    variant: str
    criterion: Criterion
    has_batchnorm: bool
    checkpoint: Path | None
    checkpoint_digest: str | None
    round_to: int
    bn_recal: bool
    first: PosttrainConfig | None
    """Training before pruning: with L1 where channels are ranked by BatchNorm scales."""
    fine_tuning: tuple[PosttrainConfig, ...]
    """One after each step of pruning; they share the epochs."""
    scratch: PosttrainConfig
    """Training of the widths found, with new weights: as many epochs as all the others."""

    @property
    def protocol(self) -> Variant:
        """The row of the table of variants."""
        return VARIANTS[self.variant]

    @property
    def has_l1(self) -> bool:
        """Whether BatchNorm scales are pulled to 0 before pruning."""
        return self.first is not None and self.criterion == "slimming"

    def identity(self) -> dict[str, Any]:
        """What decides the network before pruning."""
        return {
            "arch": self.arch,
            "variant": self.variant,
            "checkpoint": self.checkpoint_digest,
            "labels": self.labels,
            "pull": self.pull if self.has_l1 else None,
            "first": training_identity(self.first) if self.first else None,
        }

    def row_identity(self) -> dict[str, Any]:
        """What decides a row beside that, and its ratio and kind."""
        return {
            "criterion": self.criterion,
            "round_to": self.round_to,
            "bn_recal": self.bn_recal,
            "fine_tuning": [training_identity(cfg) for cfg in self.fine_tuning],
            "scratch": training_identity(self.scratch),
        }


def make_plan(inputs: Inputs, options: Options) -> Plan:
    """Check the options of the command and settle the trainings.

    Raises:
        UserError: if one cannot be used, or a ratio is out of reach.
    """
    variant = _variant(options)
    for ratio in options.ratios:
        if not 0 <= ratio < 1:
            raise ConfigError(f"--ratio {ratio:g}: give a share of the channels in [0, 1)")
    pull = PULL if options.pull is None else options.pull
    if not 0 <= pull < math.inf:
        raise ConfigError(f"--pull {pull:g}: give a number from 0 up; a scale starts at 1")
    _check_arch(inputs, options.arch)
    model = _model(inputs, options)
    has_batchnorm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    criterion = _criterion(options, variant, has_batchnorm)
    if options.pull is not None and (criterion != "slimming" or not variant.first):
        raise ConfigError(
            f"--pull {pull:g}: has no effect, as nothing is trained with L1 here (--variant "
            f"{options.variant}, {criterion}); leave it out"
        )
    layers = coupled_channels(model, inputs.header.image_size)
    for ratio in options.ratios:
        check_reachable(options.arch, layers, ratio, options.round_to)

    def settled(*own: str) -> PosttrainConfig:
        mine = [f"arch={options.arch}", *own, *(() if has_batchnorm else WITHOUT_BATCHNORM)]
        return settings_with(inputs.training, mine, options.overrides, options.epochs)

    first = settled(*variant.first) if variant.first else None
    if criterion == "slimming" and first and (first.optimizer != "sgd" or first.momentum == 1):
        raise ConfigError(
            "--set: sparsity training wants optimizer sgd and a momentum below 1, or the pull of "
            "L1 has no meaning"
        )
    tuning = settled(*FINE_TUNING)
    new = settled(*FIRST)
    total = tuning.epochs + (first.epochs if first else 0)
    return Plan(
        arch=options.arch,
        ratios=tuple(sorted({0.0, *options.ratios})),
        seeds=options.seeds,
        pull=pull,
        labels=options.labels,
        variant=options.variant,
        criterion=criterion,
        has_batchnorm=has_batchnorm,
        checkpoint=options.checkpoint,
        checkpoint_digest=sha256_of(options.checkpoint) if options.checkpoint else None,
        round_to=options.round_to,
        bn_recal=options.bn_recal,
        first=first,
        fine_tuning=_shared(tuning, options.iterations),
        scratch=new.model_copy(update={"epochs": total}),
    )


def _variant(options: Options) -> Variant:
    if options.variant not in VARIANTS:
        raise ConfigError(f"--variant {options.variant}: choose among {', '.join(VARIANTS)}")
    variant = VARIANTS[options.variant]
    if variant.from_checkpoint and options.checkpoint is None:
        raise ConfigError(
            f"--variant {options.variant}: prunes a trained network; give it as --checkpoint FILE"
        )
    if options.checkpoint is not None and not variant.from_checkpoint:
        others = " or ".join(name for name, other in VARIANTS.items() if other.from_checkpoint)
        raise ConfigError(
            f"--checkpoint {options.checkpoint}: --variant {options.variant} starts from new "
            f"weights; choose --variant {others}"
        )
    return variant


def _check_arch(inputs: Inputs, arch: str) -> None:
    if arch in PRUNABLE:
        return
    _fresh(inputs, arch)  # which says what is wrong with an unknown name
    why = (
        "it shuffles channels between its branches, which torch-pruning cannot follow"
        if arch.startswith("shufflenet")
        else "it cannot be pruned yet"
    )
    raise ConfigError(f"--arch {arch}: {why}; choose among {', '.join(PRUNABLE)}")


def _model(inputs: Inputs, options: Options) -> nn.Module:
    """The network before pruning, or for variants that train it one of its shape."""
    if options.checkpoint is not None:
        return load_start(options.checkpoint, options.arch, inputs.header)
    return _fresh(inputs, options.arch)


def _fresh(inputs: Inputs, arch: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return create_model(arch, len(inputs.header.class_names), inputs.header.image_size)


def _criterion(options: Options, variant: Variant, has_batchnorm: bool) -> Criterion:
    given = options.criterion
    if given not in (None, "slimming", "magnitude"):
        raise ConfigError(f"--criterion {given}: choose slimming or magnitude")
    if not has_batchnorm and given == "slimming":
        raise ConfigError(
            f"--criterion slimming: {options.arch} has no BatchNorm layer, and slimming ranks "
            "channels by the scales of BatchNorm; choose --criterion magnitude"
        )
    criterion: Criterion = variant.criterion if has_batchnorm else "magnitude"
    if given is not None:
        criterion = "slimming" if given == "slimming" else "magnitude"
    if variant.from_checkpoint and variant.first and criterion == "magnitude":
        raise ConfigError(
            f"--variant {options.variant}: its training before pruning is for BatchNorm scales, "
            "and magnitude wants none; choose --variant oneshot"
        )
    return criterion


def _shared(cfg: PosttrainConfig, iterations: int) -> tuple[PosttrainConfig, ...]:
    """The epochs of one training as `iterations` trainings; the last ones get one more."""
    if iterations > cfg.epochs:
        raise ConfigError(
            f"--iterations {iterations}: {cfg.epochs} epochs of fine-tuning cannot be shared among "
            "so many steps; give fewer steps or more --epochs"
        )
    ends = [cfg.epochs * step // iterations for step in range(iterations + 1)]
    return tuple(
        cfg.model_copy(update={"epochs": end - start}) for start, end in itertools.pairwise(ends)
    )
