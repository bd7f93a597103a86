"""BatchNorm statistics of a batch, held against those that training left in a network."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scdd.errors import ConfigError
from scdd.synced_batchnorm import PLAIN

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
Layer = TypeVar("Layer", bound=nn.Module)


class MatchedBatchNorm(nn.Module):
    """An eval-mode BatchNorm that also keeps how far its latest input is from its statistics.

    No hook and one pass: the input less the running mean gives both statistics without cancelling.
    """

    running_mean: Tensor
    running_var: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        self.groups = 1
        """Independent batches in the input, one after the other and of one size."""
        self.distances: Tensor | None = None
        """[2, G] of the latest input: ||mean - running mean||_2 and ||var - running var||_2."""
        self.register_buffer("running_mean", norm.running_mean.detach().float().clone())
        self.register_buffer("running_var", norm.running_var.detach().float().clone())
        scale = torch.rsqrt(self.running_var + norm.eps)
        shift = -self.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight.detach(), shift * norm.weight.detach()
            shift = shift + norm.bias.detach()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [G * B, C, ...] by the running statistics; compare each batch with them."""
        wide = (1, -1) + (1,) * (x.ndim - 2)
        centred = (x.float() - self.running_mean.view(wide)).unflatten(0, (self.groups, -1))
        axes = (1, *range(3, centred.ndim))
        off = centred.mean(axes)
        variance = centred.square().mean(axes) - off.square()
        self.distances = torch.stack(
            [
                torch.linalg.vector_norm(off, dim=1),
                torch.linalg.vector_norm(variance - self.running_var, dim=1),
            ]
        )
        return x * self.scale.view(wide).to(x.dtype) + self.shift.view(wide).to(x.dtype)


class GroupedBatchNorm(nn.Module):
    """A BatchNorm that knows its input alone: as in training, but for each of several groups apart.

    Running statistics are neither used nor changed.
    """

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        self.groups = 1
        """Groups in the input, one after the other and of one size."""
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [G * B, C, ...] by the statistics of each group of B."""
        weight, bias, eps = self.norm.weight, self.norm.bias, self.norm.eps
        # Faster on a CPU than one pass over all groups, whichever way that is written.
        parts = [
            F.batch_norm(part, None, None, weight, bias, training=True, eps=eps)
            for part in x.chunk(self.groups)
        ]
        return torch.cat(parts)


class MatchedTeacher(nn.Module):
    """A frozen copy of a network that also measures how far a batch is from its statistics."""

    def __init__(self, teacher: nn.Module, groups: int = 1) -> None:
        super().__init__()
        self.net = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.layers = replace_batchnorm(self.net, MatchedBatchNorm, has_statistics)
        """In the order of registration."""
        if not self.layers:
            raise ValueError(
                f"{type(teacher).__name__} has no BatchNorm layer, so its statistics cannot be "
                "matched; choose a teacher with BatchNorm"
            )
        for layer in self.layers:
            layer.groups = groups

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [G * B, C] of normalised images and the distances [K, 2, G] of K layers.

        Distances are of the layers' inputs: norms, not squared, of the differences between batch
        statistics (biased variance) and running statistics, mean and then variance (SC-DD, Eq. 8).
        """
        logits = self.net(x)
        distances = torch.stack([layer.distances for layer in self.layers])  # type: ignore[misc]
        for layer in self.layers:
            layer.distances = None
        return logits, distances


def with_matched_statistics(teacher: nn.Module, groups: int = 1) -> MatchedTeacher:
    """Return a copy of `teacher` for `groups` independent batches in one input.

    Raises:
        ValueError: if the network has no BatchNorm with running statistics.
    """
    return MatchedTeacher(teacher, groups)


def count_batchnorm(module: nn.Module) -> int:
    """Number of layers whose statistics can be matched."""
    return sum(isinstance(part, BatchNorm) and has_statistics(part) for part in module.modules())


def has_statistics(norm: BatchNorm) -> bool:
    """Whether training has left statistics in a layer."""
    return norm.running_mean is not None


def check_plain(net: nn.Module) -> None:
    """Refuse BatchNorm layers that do more than normalise, such as timm's with an activation.

    Another layer in their place would silently leave that out.

    Raises:
        ConfigError: if there is one.
    """
    for module in net.modules():
        if isinstance(module, _BatchNorm) and type(module) not in PLAIN:
            raise ConfigError(
                f"its layers of type {type(module).__name__} do more than BatchNorm, which cannot "
                "be taken apart here; choose a network with plain BatchNorm, such as resnet18"
            )


def replace_batchnorm(
    net: nn.Module,
    make: Callable[[BatchNorm], Layer],
    wanted: Callable[[BatchNorm], bool] = lambda norm: True,
) -> list[Layer]:
    """Put `make(layer)` in the place of every wanted BatchNorm below `net`; return what was put.

    In the order of registration.

    Raises:
        ConfigError: if a layer is more than BatchNorm.
    """
    check_plain(net)
    layers: list[Layer] = []
    for name, module in list(net.named_modules()):
        if isinstance(module, BatchNorm) and wanted(module):
            layers.append(make(module))
            net.set_submodule(name, layers[-1])
    return layers
