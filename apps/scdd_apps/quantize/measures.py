"""What a quantised network is worth: accuracy, agreement, error of the logits."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scdd.datasets import ImageSource

Run = Callable[[Tensor], Tensor]
"""RGB values in [0, 1], float32 [B, 3, S, S], to logits [B, C]."""

BATCH = 100


@dataclass(frozen=True)
class Quality:
    """How one network does on images that others see too."""

    top1: float | None
    """Per cent; None where nobody knows the labels."""
    agreement: float
    """Per cent of images that get the same class as from the first network."""
    logit_error: float
    """|logits - logits of the first|_2 over |logits of the first|_2, per cent."""


def qualities(
    runs: Sequence[Run], batches: Iterable[tuple[Tensor, Tensor | None]]
) -> list[Quality]:
    """Measure all networks on the same images; the first is what the others are held against.

    Args:
        runs: the networks.
        batches: uint8 [B, 3, S, S] and their classes int64 [B], if known.
    """
    right, same, error = torch.zeros(3, len(runs), dtype=torch.float64)
    count, norm, labelled = 0, 0.0, False
    for images, labels in batches:
        pixels = images.cpu().float() / 255
        logits = torch.stack([run(pixels).double() for run in runs])
        classes = logits.argmax(2)
        same += (classes == classes[0]).sum(1)
        error += (logits - logits[0]).square().sum((1, 2))
        norm += logits[0].square().sum().item()
        if labels is not None:
            right += (classes == labels).sum(1)
        count, labelled = count + len(images), labels is not None
    return [
        Quality(
            100 * right[i].item() / count if labelled else None,
            100 * same[i].item() / count,
            100 * (error[i].item() / norm) ** 0.5,
        )
        for i in range(len(runs))
    ]


def labelled_images(
    val: ImageSource | None, instead: Tensor
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Real images and their classes; without any, `instead`, whose classes are not told."""
    if val is None:
        yield from ((part, None) for part in instead.split(BATCH))
        return
    for index in torch.arange(len(val.labels)).split(BATCH):
        yield val.read(index), val.labels[index]
