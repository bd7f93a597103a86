"""How each architecture is trained: as the run trains its own student, or as the net needs it."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from scdd.config.posttrain import PosttrainConfig
from scdd.errors import ConfigError
from scdd.models import create_model
from scdd_apps.crossarch.options import Tuning
from scdd_apps.files import Inputs, settings_with

MOST_EPOCHS = 100
"""Per-arch, epochs are the run's own, but no more than this, times `Need.passes`: the student of a
run is small and may train for long, these nets are large."""
ANY_NET_WORKS = 224
"""Pixels; a name that cannot be built at this size is no name."""


class Need(NamedTuple):
    """What a net needs beyond the settings of the run."""

    why: str = ""
    passes: int = 1
    """Times the epochs."""
    settings: tuple[str, ...] = ()
    """As `--set` has them; with the optimiser, as a rate means nothing without."""


_SLOW = ("optimizer=adamw", "lr=0.0005", "warmup_epochs=5")
UNNORMALISED = Need("no BatchNorm holds the size of the activations", 2, _SLOW)
"""Of any net without, whatever its name."""
NEEDS: dict[str, Need] = {
    "vit_tiny": Need(
        "attention learns from the images what a convolution starts with",
        3,
        (*_SLOW, "stretch=1.0"),
    ),
    "mobilenet_v3_large": Need(
        "depthwise convolutions see few gradients a step and go wild at a high rate",
        2,
        ("optimizer=adamw", "lr=0.001", "stretch=1.0"),
    ),
    "shufflenet_v2_x0_5": Need(
        "layers of few channels learn slowly at any lower rate",
        2,
        ("optimizer=adamw", "lr=0.004", "stretch=1.0"),
    ),
}
"""Where the run's own settings do not serve, and no more; tuned on digits that were held out."""


class Recipe(NamedTuple):
    """How one architecture is trained, and what made it differ from the run's own, if anything."""

    cfg: PosttrainConfig
    why: str


def recipe_for(
    inputs: Inputs, arch: str, tuning: Tuning, epochs: int | None, overrides: Sequence[str]
) -> Recipe:
    """Settle the training of one architecture; `overrides` and `epochs` are the user's.

    Raises:
        ConfigError: if the architecture or a setting is unknown.
    """
    base = inputs.training or PosttrainConfig()
    own, need = [f"arch={arch}"], Need()
    net = built(arch, inputs)
    if tuning == "per-arch":
        need = need_of(arch, net)
        own += [f"epochs={min(base.epochs, MOST_EPOCHS) * need.passes}", *need.settings]
    return Recipe(settings_with(base, own, overrides, epochs), need.why)


def need_of(arch: str, net: nn.Module | None) -> Need:
    """What `arch` needs: its row, or else what its layers tell, if there is a `net` of it."""
    if arch in NEEDS:
        return NEEDS[arch]
    return UNNORMALISED if net is not None and not _normalised(net) else Need()


def built(arch: str, inputs: Inputs) -> nn.Module | None:
    """The net at the file's size, with its classes if there are any.

    None if it cannot be built at that size, which is a row's own matter.

    Raises:
        ConfigError: if it cannot be built at any size.
    """
    classes = len(inputs.header.class_names)
    try:
        return create_model(arch, classes, inputs.header.image_size)
    except ConfigError:
        create_model(arch, classes, ANY_NET_WORKS)
    except Exception:
        pass
    return None


def _normalised(net: nn.Module) -> bool:
    """Whether layers normalise channels over positions; a LayerNorm, over channels, does not."""
    return any(
        isinstance(module, _NormBase)
        or (isinstance(module, nn.GroupNorm) and module.num_groups > 1)
        for module in net.modules()
    )
