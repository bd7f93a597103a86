"""The moving average by which one network follows another."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(slow: nn.Module, online: Iterable[nn.Module], momentum: float) -> None:
    """Move `slow` to `momentum` of itself and the rest of `online`, its parts in their order.

    Parameters alone: the BatchNorm buffers of `slow` come from its own forward passes.
    """
    moved: list[Tensor] = list(slow.parameters())
    wanted: list[Tensor] = [parameter for part in online for parameter in part.parameters()]
    torch._foreach_lerp_(moved, wanted, 1 - momentum)
