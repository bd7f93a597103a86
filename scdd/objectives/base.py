"""The contract of a pre-training objective."""

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
    """[]: mean over the images of this process."""
    embedding: Tensor
    """[B, D]: L2-normalised outputs, detached; watched for collapse."""


class Objective(nn.Module):
    """A loss around a backbone, with whatever else it trains or remembers.

    Its state dict is all that a resumed run needs (queues, EMA weights, centres). Where several
    processes train together, every process sees its share of the batch, and what an objective
    remembers is the same on all of them.
    """

    backbone: nn.Module
    """What squeeze keeps: [B, 3, S, S] to features [B, D]."""
    classifier: nn.Linear | None = None
    """A classifier that was trained on top of it, by labels."""
    forgetting: dict[str, Tensor] | None = None
    """Per training image [N]: how often it was forgotten, and whether it was ever learnt."""

    def forward(self, batch: Batch) -> Loss:
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def on_step_begin(self, epoch: float, epochs: int) -> None:
        """Set what depends on time: `epoch` is how many are done, in [0, epochs)."""

    def on_backward_end(self) -> None:
        """Change gradients before the optimiser uses them."""

    def on_step_end(self) -> None:
        """Follow the weights that the optimiser has moved."""
