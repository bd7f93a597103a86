"""The small residual nets for 32 px images, depth 6n+2 (arXiv:1512.03385, section 4.2).

A name such as `resnet8x4` means depth 8 and stages four times as wide, as in the distillation
literature since arXiv:1910.10699. Shortcuts that change the shape are 1x1 convolutions with
BatchNorm, as there.
"""

import torch
from torch import nn
from torch.nn import functional as F

# Stem and three stages, by the factor in the name. The literature doubles the stem only for x4.
WIDTHS = {1: (16, 16, 32, 64), 2: (16, 32, 64, 128), 4: (32, 64, 128, 256)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, C, H, W] to [B, width, H/stride, W/stride]."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Sequential()
        if stride != 1 or channels != width:
            self.downsample.append(nn.Conv2d(channels, width, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


class SmallResNet(nn.Module):
    """A 3x3 stem, three stages of `blocks` blocks with strides 1, 2, 2, average pool, `fc`.

    `widths` are the channels of the stem and of the stages; images are [B, 3, H, W].
    """

    def __init__(self, blocks: int, widths: tuple[int, int, int, int], num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(blocks, widths[0], widths[1], stride=1)
        self.layer2 = _stage(blocks, widths[1], widths[2], stride=2)
        self.layer3 = _stage(blocks, widths[2], widths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def small_resnet(depth: int, factor: int, num_classes: int) -> SmallResNet:
    """Build the net of `depth` 6n+2 whose stages are `factor` times as wide.

    Raises:
        ValueError: if the depth is not 6n+2 or the factor is not in `WIDTHS`.
    """
    if depth < 8 or depth % 6 != 2 or factor not in WIDTHS:
        raise ValueError(
            f"small_resnet: no net of depth {depth} and factor {factor}; "
            f"choose a depth of 6n+2 from 8 up and a factor of {sorted(WIDTHS)}"
        )
    return SmallResNet((depth - 2) // 6, WIDTHS[factor], num_classes)


def _stage(blocks: int, channels: int, width: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))
