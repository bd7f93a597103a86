"""How the stages see real images: labels, pixel statistics, random access and shuffled passes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scdd.config.section import Triple


class ImageSource(Protocol):
    """Labelled images; the pixels live on one device, labels and indices on the CPU."""

    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    labels: Tensor
    """Class of every image: int64 `[N]` on the CPU."""
    mean: Triple
    """Channel means of pixel values in [0, 1]."""
    std: Triple
    """Channel standard deviations of pixel values in [0, 1]."""

    def __len__(self) -> int: ...

    def read(self, indices: Tensor, size: int | None = None) -> Tensor:
        """Return uint8 `[B, 3, size, size]` of the images `indices`, on the source's device."""

    def epoch(
        self, batch: int, generator: torch.Generator, skip: int = 0, drop_last: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one shuffled pass as (uint8 `[B, 3, S, S]`, index int64 `[B]` on the CPU).

        The order depends on `generator` alone. The first `skip` batches are not read, so a pass
        that was cut short goes on where it stopped.
        """


@dataclass(eq=False)
class ResidentSource:
    """The whole set as one uint8 tensor `images` `[N, 3, S, S]` on one device.

    Raises:
        ValueError: if the images are no square uint8 RGB batch or do not match the labels.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: Triple
    std: Triple

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        square = images.ndim == 4 and images.shape[1] == 3 and images.shape[2] == images.shape[3]
        if not square or images.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 [N, 3, S, S], not {images.dtype} {tuple(images.shape)}"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64 or labels.is_cuda:
            raise ValueError(
                f"labels must be int64 [{len(images)}] on the CPU, "
                f"not {labels.dtype} {tuple(labels.shape)} on {labels.device}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Tensor, size: int | None = None) -> Tensor:
        """Return uint8 `[B, 3, S, S]` of the images `indices`, on the source's device.

        Raises:
            ValueError: if `size` is not the size the images were loaded at.
        """
        stored = self.images.shape[-1]
        if size not in (None, stored):
            raise ValueError(
                f"this source keeps its images at {stored} px and cannot give {size} px; "
                f"load the dataset with image_size={size}"
            )
        return self.images.index_select(0, indices.to(self.images.device))

    def epoch(
        self, batch: int, generator: torch.Generator, skip: int = 0, drop_last: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one shuffled pass as (uint8 `[B, 3, S, S]`, index int64 `[B]` on the CPU).

        The order is drawn when this is called. The first `skip` batches are not read.

        Raises:
            ValueError: if there is no whole batch and `drop_last` would leave nothing to yield.
        """
        count = len(self)
        if batch < 1 or skip < 0:
            raise ValueError(f"batch must be positive and skip not negative: {batch}, {skip}")
        if drop_last and batch > count:
            raise ValueError(f"a batch of {batch} is more than the {count} images of this source")
        order = torch.randperm(count, generator=generator, device=generator.device).cpu()
        end = count - count % batch if drop_last else count
        # One transfer for the whole pass instead of one for every batch.
        on_device = order.to(self.images.device)

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(skip * batch, end, batch):
                stop = min(start + batch, end)
                yield self.images.index_select(0, on_device[start:stop]), order[start:stop]

        return batches()
