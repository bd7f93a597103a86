"""What BatchNorm statistics say about a network: their spread across channels, and their entropy.

SC-DD (arXiv:2404.07976) picks its teachers by them: the more the running statistics vary from
channel to channel, the better the images that are recovered from them. None of the figures here
belongs to the function that a network computes: multiply the convolution before a BatchNorm layer
by a, and its output stays while the variances below grow by a^2 and a^4.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scdd.errors import CheckpointError


@dataclass(frozen=True)
class BatchNormLayer:
    """Running statistics [C] of one layer, in float64 on the CPU."""

    name: str
    running_mean: Tensor
    running_var: Tensor


Checkpoints = Mapping[str, Sequence[BatchNormLayer]]
"""Layers by the name of their checkpoint."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and variance across channels (divided by their number) of the running statistics."""

    channels: int
    mean_of_means: float
    variance_of_means: float
    mean_of_variances: float
    variance_of_variances: float
    entropy: float
    """Nats, summed over the channels; -inf where a channel never varied."""


def batchnorm_layers(weights: Mapping[str, Tensor], origin: Path) -> list[BatchNormLayer]:
    """Find the BatchNorm layers of a state dict, in the order of its keys.

    A layer is a `running_mean` and a `running_var`, beside a `weight` or a `num_batches_tracked`
    (the first is missing without affine parameters, the second in files before torch 0.4.1).
    Nothing in a state dict tells BatchNorm1d, 2d and 3d apart.

    Raises:
        CheckpointError: if there is no such layer, or its statistics cannot be those of a layer.
    """
    layers = []
    for key in weights:
        prefix, dot, last = key.rpartition(".")
        beside = (f"{prefix}{dot}{other}" for other in ("weight", "num_batches_tracked"))
        if (
            last == "running_mean"
            and f"{prefix}{dot}running_var" in weights
            and any(other in weights for other in beside)
        ):
            layers.append(
                _layer(prefix, weights[key], weights[f"{prefix}{dot}running_var"], origin)
            )
    if not layers:
        raise CheckpointError(
            f"{origin}: holds no BatchNorm layer (running_mean and running_var beside weight or "
            "num_batches_tracked); give the weights of a network with BatchNorm"
        )
    return layers


def channel_statistics(layers: Sequence[BatchNormLayer]) -> ChannelStatistics:
    """Take the channels of `layers` together: those of one layer, or overall those of all.

    Overall, the differences between layers count as well as those within them.

    Of the paper: "BN-mean Var", the last column of Table 2, is by the text beside it (section 3.3)
    the variance across channels of the running mean of the first BatchNorm layer, so
    `variance_of_means` of that layer; Figure 4 shows both variances of "the first BN layer in the
    residual block". The text leaves open whether the "first layer" of the table is that of the
    stem or that of Figure 4, of which block that one is, whether the sum is divided by C (here) or
    C - 1, which for 64 channels is 1.6 % more, and whether the powers of ten are as meant: 10^-3
    for MoCo v2, 10^2 for MoCo v3 and SwAV.
    """
    means = torch.cat([layer.running_mean for layer in layers])
    variances = torch.cat([layer.running_var for layer in layers])
    return ChannelStatistics(
        channels=len(means),
        mean_of_means=means.mean().item(),
        variance_of_means=means.var(correction=0).item(),
        mean_of_variances=variances.mean().item(),
        variance_of_variances=variances.var(correction=0).item(),
        entropy=gaussian_entropy(variances),
    )


def gaussian_entropy(variances: Tensor) -> float:
    """Differential entropy in nats of independent Gaussians with these variances [C].

    Eq. 7 is 1/2 log(2 pi e sigma^2) for one Gaussian, sigma^2 being the variance of a feature over
    the data (Eq. 4), for which BatchNorm keeps a running variance per channel. How the channels
    of a layer join is not said; here they are independent, so their entropies add up.
    """
    return 0.5 * (len(variances) * math.log(2 * math.pi * math.e) + variances.log().sum().item())


def _layer(name: str, mean: Tensor, var: Tensor, origin: Path) -> BatchNormLayer:
    for tensor in (mean, var):
        plain = tensor.layout is torch.strided and tensor.is_floating_point()
        if not plain or tensor.shape != mean.shape or mean.ndim != 1:
            raise CheckpointError(
                f"{origin}: layer {name!r} has a running_mean {_kind(mean)} and a running_var "
                f"{_kind(var)}, which should be one number per channel; get the file again"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{origin}: the statistics of layer {name!r} are not finite, so its training has "
                "diverged; give an earlier checkpoint"
            )
    if len(mean) == 0 or (var < 0).any():
        raise CheckpointError(
            f"{origin}: layer {name!r} has no channels or a negative running_var, which no "
            "training leaves; get the file again"
        )
    return BatchNormLayer(name, mean.detach().cpu().double(), var.detach().cpu().double())


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
