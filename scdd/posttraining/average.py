"""The exponential moving average of a student's weights."""

import torch
from torch import nn


@torch.no_grad()
def follow(average: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the weights of `average` to decay * their own + (1 - decay) * those of `student`."""
    # As one launch for all, where the plain operation makes one for each.
    torch._foreach_lerp_(list(average.parameters()), list(student.parameters()), 1 - decay)


@torch.no_grad()
def take_buffers(average: nn.Module, student: nn.Module) -> nn.Module:
    """Give `average` the BatchNorm statistics of `student`; return it."""
    for mine, theirs in zip(average.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)
    return average
