"""How each architecture is trained: the run's own settings, and what a net needs beyond them."""

from collections.abc import Sequence
from dataclasses import dataclass

from scdd.config.posttrain import PosttrainConfig
from scdd.errors import ConfigError
from scdd.models import list_models
from scdd.posttraining import Labels
from scdd_apps.files import Inputs, settings_with

MOST_EPOCHS = 100
"""Default epochs are the run's own, but no more than this: these nets are large."""
ARCH_SETTINGS: dict[str, tuple[str, ...]] = {
    "mobilenet_v3_large": ("epochs=200", "lr=0.001", "stretch=1.0"),
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
and more passes for what starts slowly. Checked on held-out digits with half and twice the rate."""


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
