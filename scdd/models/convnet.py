"""The ConvNet of dataset distillation (arXiv:2006.05929): blocks of a 3x3 convolution, norm, ReLU
and a 2x2 average pool, and one linear layer on the flattened last map.

Three blocks on images of 32 px and fewer, and one more for every doubling, so that the last map
has 4x4 to 7x7 pixels. Three nets are in use: 128 channels with instance norm, on which the field
reports; the same with BatchNorm, whose statistics can be matched (arXiv:2404.13733); and with
BatchNorm and channels that double up to 512, the net of kernel regression (arXiv:2206.00719) and
of self-supervised distillation (KRR-ST, arXiv:2310.06511), of which there are narrow ones too.
"""

from collections.abc import Callable

import torch
from torch import nn

from scdd.models.stems import MIN_LAST_MAP

LEAST_BLOCKS, FLATTENED = 3, 4
"""Blocks of the net for 32 px, and the side of its last map in pixels."""

Norm = Callable[[int], nn.Module]


class ConvNet(nn.Module):
    """One block per entry of `widths`, of which the first `pools` halve the map [B, 3, H, W]."""

    def __init__(
        self, widths: tuple[int, ...], pools: int, norm: Norm, num_classes: int, image_size: int
    ):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for number, width in enumerate(widths):
            layers += [nn.Conv2d(channels, width, 3, padding=1), norm(width), nn.ReLU(inplace=True)]
            layers += [nn.AvgPool2d(2)] if number < pools else []
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * (image_size >> pools) ** 2, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


def instance_norm(channels: int) -> nn.Module:
    """Normalise each channel of each image, with a scale and a shift."""
    return nn.GroupNorm(channels, channels)


def convnet(
    norm: Norm, doubling: bool, width: int, num_classes: int, image_size: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the net and say how it differs from that for 32 px.

    All blocks have `width` channels; with `doubling` the last one has, each before it half as many.
    """
    blocks = max(LEAST_BLOCKS, (image_size // FLATTENED).bit_length() - 1)
    pools = min(blocks, (image_size // MIN_LAST_MAP).bit_length() - 1)
    changes = [f"{blocks} blocks"] if blocks > LEAST_BLOCKS else []
    changes += [f"pool {number} dropped" for number in range(pools + 1, blocks + 1)]
    widths = (width,) * blocks
    if doubling:
        widths = tuple(width >> n for n in reversed(range(blocks)))
    return ConvNet(widths, pools, norm, num_classes, image_size), tuple(changes)
