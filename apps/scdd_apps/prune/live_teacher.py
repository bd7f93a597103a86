"""The views of a distilled file with the logits of a network at hand in place of stored ones."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from scdd.distilled import Batch, DistilledDataset
from scdd.training import evaluating


class Taught(DistilledDataset):
    """Knowledge distillation: `teacher`, in eval mode, labels the very views that are shown.

    Views whose stored labels were made in groups stay together, although this needs it no more.
    """

    def __init__(self, data: DistilledDataset, teacher: nn.Module) -> None:
        super().__init__(
            data.path, data.header, data.images, data.labels, data.records, 0, source=None
        )
        self._teacher = teacher

    def epoch(
        self,
        epoch: int,
        batch: int,
        generator: torch.Generator,
        skip: int = 0,
        soft_labels: bool = True,
    ) -> Iterator[Batch]:
        """As in the parent; logits are float32 [B, C]."""
        for shown in super().epoch(epoch, batch, generator, skip, soft_labels=False):
            if soft_labels:
                with evaluating(self._teacher), torch.no_grad():
                    shown = dataclasses.replace(shown, logits=self._teacher(shown.images).float())
            yield shown
