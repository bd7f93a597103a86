"""The contract of a pre-training objective."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """One step's images on this process."""

    views: tuple[Tensor, ...]
    """Each [B, 3, S, S], normalised, in the configured order; the first two are global."""
    labels: Tensor
    """int64 [B], on the device; only a supervised objective looks at them."""
    rows: Tensor
    """int64 [B], on the device: which training images they are."""
    generator: torch.Generator
    """On the CPU and in the same state on every process."""


class Loss(NamedTuple):
    """What a step yields."""

    value: Tensor
    """[]: gradients are averaged over the processes, so this is the mean over the images of this
    one, or the loss of the images of all on each."""
    embedding: Tensor
    """[B, D]: L2-normalised outputs, detached; watched for collapse."""


class Objective(nn.Module, ABC):
    """A loss around a backbone, with whatever else it trains or remembers.

    Its state dict is all that a resumed run needs (queues, EMA weights, centres). Where several
    processes train together, every process sees its share of the batch, and what an objective
    remembers is the same on all of them.
    """

    backbone: nn.Module
    """What squeeze keeps: [B, 3, S, S] to features [B, D]."""

    # Properties, since a plain class attribute would hide a submodule of the same name.

    @property
    def classifier(self) -> nn.Linear | None:
        """A classifier that was trained on top of the backbone, by labels."""
        return None

    @property
    def forgetting(self) -> dict[str, Tensor] | None:
        """Of each training image: forgetting events, int32 [N], and whether ever learnt, bool."""
        return None

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """Return the loss of this process; what is remembered moves on."""

    def on_step_begin(self, epoch: float, epochs: int) -> None:
        """Set what depends on time: `epoch` is how many are done, in [0, epochs)."""

    def on_backward_end(self) -> None:
        """Change gradients before the optimiser uses them."""

    def on_step_end(self) -> None:
        """Follow the weights that the optimiser has moved."""
