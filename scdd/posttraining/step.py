"""One step: the passes of its micro-batches, then the update; and the batches of every step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from scdd.config.posttrain import PosttrainConfig
from scdd.device import uses_bf16
from scdd.distilled import Batch, DistilledDataset
from scdd.posttraining.losses import Labels, student_loss
from scdd.posttraining.sharing import own_part, sum_over_processes

Step = Callable[[Sequence[Batch]], Tensor]
"""Trains on the micro-batches of one step and returns their loss []; waits for no device."""


def steps_per_epoch(cfg: PosttrainConfig, data: DistilledDataset) -> int:
    """Steps that `cfg` makes of one pass over `data`.

    Raises:
        ValueError: if a micro-batch is too small for the groups of the stored views.
    """
    return -(-data.steps(cfg.micro_batch) // cfg.micro_batches)


def step_batches(
    cfg: PosttrainConfig,
    data: DistilledDataset,
    labels: Labels,
    epoch: int,
    order: torch.Generator,
    skip: int = 0,
) -> Iterator[list[Batch]]:
    """Yield the micro-batches of every step of an epoch, from step `skip` on.

    They are batches of the dataset: a whole number of groups each, and none of a single image. The
    last step may have fewer.
    """
    first, soft = skip * cfg.micro_batches, labels == "soft"
    parts = data.epoch(epoch, cfg.micro_batch, order, first, soft)
    if cfg.flip:
        shape = data.steps(cfg.micro_batch), cfg.micro_batch + 1  # A lonely image joins a batch.
        mirror = torch.rand(shape, generator=order) < cfg.flip
        parts = (_mirrored(part, rows) for part, rows in zip(parts, mirror[first:], strict=True))
    while batches := list(islice(parts, cfg.micro_batches)):
        yield batches


def _mirrored(batch: Batch, mirror: Tensor) -> Batch:
    """Mirror the images where `mirror` bool [B and more] says so."""
    images = batch.images
    chosen = mirror[: len(images)].to(images.device, non_blocking=True)
    mirrored = torch.where(chosen[:, None, None, None], images.flip(3), images)
    return replace(batch, images=mirrored)


def student_step(
    cfg: PosttrainConfig,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    labels: Labels,
    after_backward: Callable[[], None] | None = None,
    together: bool = False,
) -> Step:
    """Return the step of a student.

    The loss is the mean over all images of the step, so that micro-batches of unequal size count
    by their images.

    Args:
        after_backward: called between the last backward pass and the update.
        together: every process calls the step with the same batches, sees its part of each, and
            makes the same update.
    """

    def step(batches: Sequence[Batch]) -> Tensor:
        optimizer.zero_grad()
        images = sum(len(batch.images) for batch in batches)
        whole = torch.zeros((), device=batches[0].images.device)
        for batch in batches:
            own = own_part(batch) if together else batch
            loss = _loss(cfg, student, labels, own)
            if len(own.images) != images:
                loss = loss * (len(own.images) / images)
            loss.backward()
            whole = whole + loss.detach()
        if together:
            whole = sum_over_processes(student, whole)
        if after_backward is not None:
            after_backward()
        optimizer.step()
        return whole

    return step


def _loss(cfg: PosttrainConfig, student: nn.Module, labels: Labels, batch: Batch) -> Tensor:
    device = batch.images.device
    bf16 = uses_bf16(cfg.precision, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        logits = student(batch.images)
    if len(logits) == 0:
        return logits.float().sum()  # 0, on the way to every weight; a mean of nothing is no number
    return student_loss(cfg, labels, logits, batch)
