"""The head that objectives put on a backbone while it learns."""

from itertools import pairwise

from torch import nn


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers without bias from width to width, BatchNorm and ReLU between them."""
    layers = nn.Sequential()
    for inputs, outputs in pairwise(widths):
        if layers:
            layers.extend([nn.BatchNorm1d(inputs), nn.ReLU(inplace=True)])
        layers.append(nn.Linear(inputs, outputs, bias=False))
    return layers
