"""The MobileNet of KRR-ST's tables (arXiv:2310.06511): a lighter MobileNetV2 (arXiv:1801.04381).

Inner widths are twice, not six times, those of the block; ReLU takes the place of ReLU6; blocks of
stride 1 that change the width have a shortcut, a 1x1 convolution with BatchNorm.
"""

import torch
from torch import nn
from torch.nn import functional as F

EXPANSION, STEM_WIDTH, LAST_WIDTH = 2, 32, 1280
# Width, blocks and stride of the stages; the first has no expansion.
STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1, 3x3 depthwise and 1x1 convolutions: [B, C, H, W] to [B, width, H/stride, W/stride]."""

    def __init__(self, channels: int, width: int, inner: int, stride: int, shortcut: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential() if shortcut else None
        if self.shortcut is not None and channels != width:
            self.shortcut.append(nn.Conv2d(channels, width, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y if self.shortcut is None else y + self.shortcut(x)


class MobileNet(nn.Module):
    """Images are [B, 3, H, W]; features before `fc` are [B, 1280]."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_WIDTH, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        stages = []
        channels = STEM_WIDTH
        for number, (width, blocks, stride) in enumerate(STAGES, 1):
            # Stage 2 has stride 1 at 32 px, hence a shortcut; at other sizes it keeps that.
            shortcut = stride == 1 or number == 2
            inner = channels * (1 if number == 1 else EXPANSION)
            stage = [InvertedResidual(channels, width, inner, stride, shortcut)]
            stage += [
                InvertedResidual(width, width, EXPANSION * width, 1, True)
                for _ in range(blocks - 1)
            ]
            stages.append(nn.Sequential(*stage))
            channels = width
        self.layers = nn.Sequential(*stages)
        self.conv2 = nn.Conv2d(channels, LAST_WIDTH, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST_WIDTH)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(LAST_WIDTH, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(self.avgpool(x).flatten(1))
