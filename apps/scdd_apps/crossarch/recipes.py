"""How each architecture is trained: the run's own settings, and what a net needs beyond them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from scdd.config.posttrain import PosttrainConfig
from scdd.errors import ConfigError
from scdd.models import list_models
from scdd.stages.posttrain import Labels
from scdd_apps.files import Inputs, settings_with

MOST_EPOCHS = 100
"""Default epochs are the run's own, but no more than this: these nets are large."""
ARCH_SETTINGS: dict[str, tuple[str, ...]] = {
    "mobilenet_v3_large": ("epochs=200", "stretch=1.0"),
    "squeezenet1_0": ("epochs=200", "optimizer=adamw", "lr=0.0005", "warmup_epochs=5"),
    "vit_tiny": (
        "epochs=300",
        "optimizer=adamw",
        "lr=0.0005",
        "warmup_epochs=5",
        "stretch=1.0",
    ),
}
"""Where the run's own settings do not serve: small learning rates and a warm-up without BatchNorm,
and more passes for what starts slowly."""

SETTLED = 20.0
"""Steps times momentum after which BatchNorm statistics have forgotten how they began (e^-20)."""
MOMENTUM = 0.1
POSITION_SCALE, BLOCK_SCALE = 25.0, 3.0
STOCK_SIZE = 224


@dataclass(frozen=True)
class Student:
    """One network to train: on which images, with which labels, how."""

    arm: str
    arch: str
    labels: Labels
    seed: int
    cfg: PosttrainConfig


def settings_for(
    inputs: Inputs, arch: str, epochs: int | None, overrides: Sequence[str]
) -> PosttrainConfig:
    """Settle the training of one architecture; `overrides` and `epochs` are the user's.

    Raises:
        ConfigError: if the architecture or a setting is unknown.
    """
    if arch not in list_models():
        raise ConfigError(
            f"--arch {arch}: no such architecture; choose among {', '.join(list_models())}"
        )
    base = inputs.training or PosttrainConfig()
    own = [f"arch={arch}", f"epochs={min(base.epochs, MOST_EPOCHS)}", *ARCH_SETTINGS.get(arch, ())]
    given = [f"epochs={epochs}"] if epochs else []
    return settings_with(base, own, [*overrides, *given])


def prepare(net: nn.Module, arch: str, image_size: int, steps: int) -> list[str]:
    """Change, in place, what a stock net leaves to a long training; return the changes in words.

    * BatchNorm whose momentum suits very long trainings would be scored on half-forgotten
      statistics: a momentum of 0.01 leaves 2 % of the initial variance 1 after 400 steps, which
      is more than many layers have of their own.
    * timm starts a vision transformer with position embeddings of std 0.02, which are lost beside
      the patch embeddings of small images (std about 0.5), and with weights of the same std, which
      at a width of 192 shrink every branch to almost nothing. Stock trainings have epochs to grow
      both.
    """
    changes = []
    slow = [
        module
        for module in net.modules()
        if isinstance(module, nn.BatchNorm2d)
        and module.momentum is not None
        and module.momentum < MOMENTUM
        and module.momentum * steps < SETTLED
    ]
    if slow:
        changes.append(f"BatchNorm momentum {MOMENTUM:g} instead of {slow[0].momentum:g}")
        for module in slow:
            module.momentum = MOMENTUM
    if arch == "vit_tiny" and image_size < STOCK_SIZE:
        _enlarge_start(net)
        changes.append(
            f"initial position embeddings x {POSITION_SCALE:g}, block weights x {BLOCK_SCALE:g}"
        )
    return changes


@torch.no_grad()
def _enlarge_start(net: nn.Module) -> None:
    net.get_parameter("backbone.pos_embed").mul_(POSITION_SCALE)
    for module in net.get_submodule("backbone.blocks").modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(BLOCK_SCALE)
