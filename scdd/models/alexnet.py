"""The AlexNet of dataset distillation (arXiv:2006.05929): five convolutions, one linear layer.

With BatchNorm, as in KRR-ST (arXiv:2310.06511), and for 32 px exactly the net of its tables. Larger
images find the stride of the original's first convolution (4 from 128 px up), and the linear
layer always reads 4x4 pixels, as in torchvision's net it reads 6x6 at any image size.
"""

import torch
from torch import nn

from scdd.models.stems import leading_drops

# Output channels and side of the convolutions, one tuple per run that ends in a 2x2 max-pool.
RUNS = (((128, 5),), ((192, 5),), ((256, 3), (192, 3), (192, 3)))
STRIDE, FLATTENED = 4, 4
"""Stride of the first convolution in stock; side of what the linear layer reads, in pixels."""


class AlexNet(nn.Module):
    """Images are [B, 3, H, W]; features before the classifier [B, 3072]."""

    def __init__(self, stride: int, num_classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for run in RUNS:
            for width, side in run:
                first = stride if not layers else 1
                layers.append(nn.Conv2d(channels, width, side, first, padding=side // 2))
                layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(FLATTENED)
        self.classifier = nn.Linear(channels * FLATTENED**2, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def alexnet(num_classes: int, image_size: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the net and say how its first convolution differs from that for large images."""
    stride = STRIDE >> leading_drops("mobile", image_size)
    changes = () if stride == STRIDE else (f"conv 5x5 stride {stride}",)
    return AlexNet(stride, num_classes), changes
