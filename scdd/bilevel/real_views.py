"""Batches of real images with the teacher's outputs, which the outer loss is measured on.

A view is a shift by whole pixels and a flip, so there are few of them, and the teacher's outputs
for all views of all images may be a table.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scdd.augment import normalise, shifted
from scdd.config.condense_pairs import CondensePairsConfig
from scdd.datasets.sources import ImageSource
from scdd.progress import Bar
from scdd.seeding import generator
from scdd.training import evaluating, shuffled_batches

BLOCK = 500
"""Images of a forward pass of the teacher."""


class RealBatch(NamedTuple):
    """Real images as networks see them, and what the teacher says of them."""

    images: Tensor
    """[b, 3, S, S], normalised."""
    targets: Tensor
    """[b, d]"""


def count_views(cfg: CondensePairsConfig) -> int:
    """How many different views there are of an image."""
    shifts = 2 * cfg.crop_padding + 1
    return {"none": 1, "flip": 2, "crop_flip": 2 * shifts**2}[cfg.outer_aug]


def real_images(
    cfg: CondensePairsConfig,
    source: ImageSource,
    rows: Tensor,
    views: Tensor,
    device: torch.device,
) -> Tensor:
    """Normalised images [b, 3, S, S] of some rows, each in its view, int64 [b] below `count_views`.

    Pixels beyond the image are black.
    """
    images = source.read(rows).to(device).float() / 255
    if cfg.outer_aug != "none":
        reach = cfg.crop_padding if cfg.outer_aug == "crop_flip" else 0
        shift, across = views // 2, 2 * reach + 1
        corners = torch.stack([shift // across - reach, shift % across - reach], dim=1)
        images = shifted(images, corners, views % 2 == 1)
    return normalise(images, source.mean, source.std)


@torch.no_grad()
def representations(teacher: nn.Module, images: Tensor) -> Tensor:
    """What the teacher says of normalised images: float32 [N, d], in eval mode."""
    with evaluating(teacher):
        return torch.cat([teacher(block).float() for block in images.split(BLOCK)])


def worth_a_table(cfg: CondensePairsConfig, images: int, target_dim: int) -> bool:
    """Whether all outputs of the teacher fit, and are fewer than the steps would ask for."""
    outputs = count_views(cfg) * images
    fits = 4 * outputs * target_dim <= cfg.cache_gib * 2**30
    return fits and outputs <= cfg.steps * min(cfg.batch, images)


def teacher_table(
    cfg: CondensePairsConfig, teacher: nn.Module, source: ImageSource, device: torch.device
) -> Tensor:
    """The teacher's outputs float32 [views, N, d] for all views of all images, on `device`."""
    parts = []
    blocks = torch.arange(len(source)).split(BLOCK)
    with Bar("teacher", count_views(cfg) * len(source)) as bar:
        for view in range(count_views(cfg)):
            for rows in blocks:
                images = real_images(cfg, source, rows, torch.full_like(rows, view), device)
                parts.append(representations(teacher, images))
                bar.advance(len(rows))
    return torch.cat(parts).view(count_views(cfg), len(source), -1)


def real_batches(
    cfg: CondensePairsConfig,
    source: ImageSource,
    teacher: nn.Module,
    table: Tensor | None,
    seed: int,
    device: torch.device,
    first: int,
) -> Iterator[RealBatch]:
    """Yield the batch of every outer step from `first` on; it depends on its number alone.

    Epochs over the shuffled images, without those left over at the end of each.
    """
    batch = min(cfg.batch, len(source))
    batches = shuffled_batches(len(source), batch, cfg.steps, seed, "condense_pairs.order", first)
    for step, rows in enumerate(batches, first):
        draw = generator(seed, "condense_pairs.views", step)
        views = torch.randint(count_views(cfg), (batch,), generator=draw)
        images = real_images(cfg, source, rows, views, device)
        if table is None:
            yield RealBatch(images, representations(teacher, images))
        else:
            yield RealBatch(images, table[views.to(table.device), rows.to(table.device)])
