"""At which rate a network can learn representations at all, told by its features at the start."""

import copy
import math

import torch
from torch import Tensor, nn

from scdd.bilevel.regressor import trunk_of

MARGIN = 0.5
"""Share of the largest stable rate that is still safe while features change."""


def largest_stable_rate(features: Tensor, target_dim: int, momentum: float) -> float:
    """Rate up to which SGD with momentum, on the mean squared error of a linear head, is stable.

    That is 2 (1 + momentum) over the greatest eigenvalue of the Hessian, which is that of
    2 / d F^T F / n (d outputs, and a column of ones in F for the bias).

    Args:
        features: [n, p].
        target_dim: d.
        momentum: of SGD.
    """
    ones = torch.ones(len(features), 1, dtype=torch.float64, device=features.device)
    design = torch.cat([features.double(), ones], dim=1)
    norm = float(torch.linalg.matrix_norm(design, ord=2))
    return (1 + momentum) * target_dim * len(design) / norm**2


def fitting_rate(net: nn.Sequential, images: Tensor, momentum: float, lr: float) -> float:
    """`lr`, or a lower rate of one digit at which the head of a new regressor does not diverge.

    Args:
        net: trunk and head, as they were initialised.
        images: a batch [B, 3, S, S], normalised.
        momentum: of SGD.
        lr: the rate that is wanted.
    """
    trunk = copy.deepcopy(trunk_of(net)).train()  # Its BatchNorm would remember the batch.
    with torch.no_grad():
        features = trunk(images)
    outputs = int(net.get_submodule("head").out_features)  # type: ignore[arg-type]
    safe = MARGIN * largest_stable_rate(features, outputs, momentum)
    if lr <= safe:
        return lr
    digit = 10.0 ** math.floor(math.log10(safe))
    return float(f"{math.floor(safe / digit) * digit:.0e}")
