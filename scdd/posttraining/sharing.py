"""Processes that train one student together: parts of a batch, and gradients summed over all."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scdd.distilled import Batch
from scdd.distributed import rank_and_size, total


def mapped(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Return a batch with `function` of each of its tensors."""
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    tensors = {name: function(v) for name, v in values.items() if isinstance(v, Tensor)}
    return dataclasses.replace(batch, **tensors)


def own_part(batch: Batch) -> Batch:
    """The images of a batch that this process sees; of a small one perhaps none."""
    rank, size = rank_and_size()
    count = len(batch.images)
    rows = slice(count * rank // size, count * (rank + 1) // size)
    return mapped(batch, lambda tensor: tensor[rows])


def sum_over_processes(student: nn.Module, loss: Tensor) -> Tensor:
    """Sum the gradients of `student` over all processes, in place; return the sum of the losses."""
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    flat = total(torch.cat([*(gradient.reshape(-1) for gradient in gradients), loss.reshape(1)]))
    parts = flat.split([*(gradient.numel() for gradient in gradients), 1])
    for gradient, summed in zip(gradients, parts[:-1], strict=True):
        gradient.copy_(summed.view_as(gradient))
    return parts[-1].squeeze()
