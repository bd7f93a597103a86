"""Relabel: the teacher's logits on stored views of the distilled images (SC-DD, Eq. 10)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from scdd.augment import normalise
from scdd.config.relabel import RelabelConfig
from scdd.config.section import Triple
from scdd.distilled.views import ViewRecords, render_views, sample_views
from scdd.training import fitting_threads


@torch.no_grad()
def relabel(
    cfg: RelabelConfig,
    teacher: nn.Module,
    images: Tensor,
    mean: Triple,
    std: Triple,
    seed: int,
    first: int,
    last: int,
    device: torch.device,
    batch: int = 500,
) -> tuple[ViewRecords, Tensor]:
    """Label views first .. last - 1; return their records and logits float32 [V, N, C].

    Args:
        images: uint8 [N, 3, S, S].
        batch: images per forward pass; no effect on the labels with running statistics.
    """
    records = sample_views(cfg, len(images), images.shape[-1], seed, first, last)
    images, labels = images.to(device), []
    together = cfg.group if cfg.teacher_bn == "batch" else batch
    example = images[:1].float().expand(together, -1, -1, -1)
    with (
        fitting_threads(teacher.to(device), example, passes=1),
        _frozen(teacher, cfg.teacher_bn == "batch"),
    ):
        for view in range(last - first):
            parts = _parts(records, view, len(images), batch)
            order = torch.cat(parts).to(device)
            logits = torch.cat(
                [
                    teacher(normalise(render_views(images, records, view, part), mean, std))
                    for part in parts
                ]
            )
            labels.append(logits.float()[order.argsort()].cpu())
    return records, torch.stack(labels)


def _parts(records: ViewRecords, view: int, count: int, batch: int) -> list[Tensor]:
    """Indices that go through the teacher together: its groups, or any cut."""
    if "group" not in records.parameters:
        return list(torch.arange(count).split(batch))
    group = records.parameters["group"][view].long()
    sizes = torch.bincount(group).tolist()
    return list(group.argsort(stable=True).split(sizes))


@contextmanager
def _frozen(teacher: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """Eval mode; with `batch_statistics` BatchNorm uses those of its input, buffers untouched."""
    teacher.eval()
    norms = [m for m in teacher.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    buffers = [(norm.running_mean, norm.running_var) for norm in norms]
    try:
        if batch_statistics:
            for norm in norms:
                norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, (mean, var) in zip(norms, buffers, strict=True):
            norm.running_mean, norm.running_var = mean, var
