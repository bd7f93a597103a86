"""Pruning without a command: a share of the channels, ranked as the network allows."""

from torch import nn

from scdd_apps.prune.channels import floors_of, select
from scdd_apps.prune.criteria import filter_rank, scale_size
from scdd_apps.prune.surgery import History, coupled_channels, remove_channels


def cut_by(model: nn.Module, size: int, ratio: float, multiple: int = 1) -> History:
    """Remove a share of the channels, by BatchNorm scales or, without any, by filters."""
    layers = coupled_channels(model, size)
    count = round(ratio * sum(layer.width for layer in layers))
    importance = scale_size if layers[0].norms else filter_rank
    removed = select(layers, count, importance, floors_of(layers), multiple)
    return remove_channels(model, size, removed)
