"""A network that predicts representations: a trunk, whose features are of use, and a head."""

from collections import OrderedDict

from torch import nn

from scdd.models import create_model


def new_regressor(arch: str, image_size: int, target_dim: int) -> nn.Sequential:
    """Initialise `trunk`, images [B, 3, S, S] to features [B, p], and `head`, these to [B, d]."""
    trunk = create_model(arch, 0, image_size)
    head = nn.Linear(int(trunk.feature_dim), target_dim)  # type: ignore[arg-type]
    return nn.Sequential(OrderedDict(trunk=trunk, head=head))


def trunk_of(regressor: nn.Sequential) -> nn.Module:
    """The part that gives features."""
    return regressor.get_submodule("trunk")
