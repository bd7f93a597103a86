"""How the stages see real images: labels, pixel statistics, random access and crops."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from scdd.augment import CropDraw, resized_crop
from scdd.config.section import Triple


class Request(NamedTuple):
    """Crops of some images that are wanted."""

    rows: Tensor
    """int64 [B] on the CPU: which images."""
    crops: tuple[CropDraw, ...]
    """What to cut out of each of them."""


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

    def crops(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, ...]]:
        """Yield, request by request, its crops as float [B, 3, size, size] in [0, 1].

        They are on the source's device. A source may take requests ahead of time, so that workers
        prepare the next batches; the order of the results is that of the requests.
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
        return self.images.index_select(0, indices.to(self.images.device, non_blocking=True))

    def crops(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, ...]]:
        """Yield, request by request, its crops as float [B, 3, size, size] in [0, 1]."""
        side = self.images.shape[-1]
        sizes = torch.tensor([[side, side]])
        for request in requests:
            x = self.read(request.rows).float() / 255
            yield tuple(
                resized_crop(x, crop.boxes(sizes), crop.size, crop.flip) for crop in request.crops
            )
