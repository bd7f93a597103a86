"""What a batch holds, and which images make one: any, or whole groups labelled together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from scdd.distilled.records import group_members


@dataclass(frozen=True, eq=False)
class Batch:
    """B rendered images and all that a loss may want of them, on one device."""

    images: Tensor
    """float32 [B, 3, S, S], normalised."""
    logits: Tensor | None
    """The teacher's, float32 [B, C]; None without soft labels."""
    labels: Tensor
    """int64 [B]; -1 is none."""
    partner_labels: Tensor
    """int64 [B], of the image mixed in; equal to `labels` without mixing."""
    label_weight: Tensor
    """float32 [B], share of the own label; 1 without mixing."""


class Sample(NamedTuple):
    """One image of the current view; a DataLoader makes of B of these what `Batch` describes."""

    images: Tensor
    """float32 [3, S, S], normalised."""
    logits: Tensor
    """float32 [C]; [0] without soft labels, since a DataLoader knows no None."""
    labels: Tensor
    """int64 []; -1 is none."""
    partner_labels: Tensor
    """int64 []."""
    label_weight: Tensor
    """float32 []."""


def batch_count(count: int, sizes: list[int] | None, batch: int) -> int:
    """Number of batches that `draw_batches` makes.

    Args:
        count: number of images.
        sizes: those of the groups, largest first; None where there are no groups.
        batch: images per batch.

    Raises:
        ValueError: if `batch` is below 1, or below the size of a group.
    """
    units, each = _units(count, sizes, batch)
    full, rest = divmod(units, each)
    lonely = sizes is None and full > 0 and rest == 1
    return full + (rest > 0) - lonely


def draw_batches(
    count: int,
    group: Tensor | None,
    sizes: list[int] | None,
    batch: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Put every image into one batch, int64 [B] each, in an order drawn from `generator`.

    The last batch may be smaller, and one image alone joins the batch before it, where BatchNorm
    has something to do. A batch of groups is a whole number of them.

    Args:
        count: number of images.
        group: int [count], the group of each image, on the CPU; None where there are no groups.
        sizes: as for `batch_count`, in every view the same.
        batch: images per batch.
        generator: on the CPU.

    Raises:
        ValueError: as `batch_count` does.
    """
    units, each = _units(count, sizes, batch)
    parts = list(torch.randperm(units, generator=generator).split(each))
    if len(parts) > batch_count(count, sizes, batch):
        parts[-2:] = [torch.cat(parts[-2:])]
    if group is None:
        return parts
    members = group_members(group)
    return [torch.cat([members[number] for number in part.tolist()]) for part in parts]


class DrawnBatches(Sampler[list[int]]):
    """Batches drawn anew for every pass, as the `batch_sampler` of a DataLoader.

    Args:
        draw: makes the batches of a pass, int64 [B] each.
        count: how many they are.
    """

    def __init__(self, draw: Callable[[], list[Tensor]], count: int) -> None:
        self._draw, self._count = draw, count

    def __iter__(self) -> Iterator[list[int]]:
        for part in self._draw():
            yield part.tolist()

    def __len__(self) -> int:
        return self._count


def _units(count: int, sizes: list[int] | None, batch: int) -> tuple[int, int]:
    """Number of images or groups, and how many of them make a batch."""
    if batch < 1:
        raise ValueError(f"a batch of {batch} images is empty")
    if sizes is None:
        return count, batch
    if batch < sizes[0]:
        raise ValueError(
            f"labels were made in groups of {sizes[0]} images; a batch of {batch} holds none; "
            f"make it at least {sizes[0]}"
        )
    return len(sizes), batch // sizes[0]
