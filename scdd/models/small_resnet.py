"""The small residual nets for 32 px images, depth 6n+2 (arXiv:1512.03385, section 4.2).

A name such as `resnet8x4` means depth 8 and stages four times as wide, as in the distillation
literature since arXiv:1910.10699. Shortcuts that change the shape are 1x1 convolutions with
BatchNorm, as there.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

# Stem and stages, by the factor in the name. The literature doubles the stem only for x4.
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
    """A 3x3 stem, stages of `blocks` blocks that halve the map from the second on, pool, `fc`.

    `widths` are the channels of the stem and of the stages; images are [B, 3, H, W].
    """

    def __init__(
        self, blocks: int, widths: tuple[int, ...], num_classes: int, stem_stride: int = 1
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(widths) - 1
        for number, (channels, width) in enumerate(pairwise(widths), 1):
            stage = _stage(blocks, channels, width, stride=1 if number == 1 else 2)
            self.add_module(f"layer{number}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
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


def resnet10w16(num_classes: int) -> SmallResNet:
    """Build the net for studies on a CPU: one block in each of four stages, 16 to 128 channels.

    Its stem has stride 2, so at 32 px a step costs a quarter of what the nets above take.
    """
    return SmallResNet(1, (16, 16, 32, 64, 128), num_classes, stem_stride=2)


def _stage(blocks: int, channels: int, width: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))
