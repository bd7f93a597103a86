"""ResNet-50 with every width times w, as SwAV has it (arXiv:2006.09882, section 4).

Stem, stages and the insides of the blocks are all w times as wide, so that parameters grow with w
squared: 94 M for w2, 375 M for w4, 586 M for w5. torchvision's wide_resnet50_2 is another net,
where only the insides of the blocks are wider.
"""

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

BLOCKS = (3, 4, 6, 3)
"""Of ResNet-50."""
WIDTH = 64
"""Channels of the stem of the net of width 1."""


class WideResNet(nn.Module):
    """Bottleneck ResNet of `factor` times the width, with torchvision's names and initialisation.

    Images are [B, 3, H, W]; features before `fc` are [B, 2048 * factor].
    """

    def __init__(self, blocks: tuple[int, int, int, int], factor: int, num_classes: int):
        super().__init__()
        width = WIDTH * factor
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(blocks[0], width, width, stride=1)
        self.layer2 = _stage(blocks[1], 4 * width, 2 * width, stride=2)
        self.layer3 = _stage(blocks[2], 8 * width, 4 * width, stride=2)
        self.layer4 = _stage(blocks[3], 16 * width, 8 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(blocks: int, channels: int, planes: int, stride: int) -> nn.Sequential:
    shortcut = nn.Sequential(
        nn.Conv2d(channels, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
    )
    first = Bottleneck(channels, planes, stride, shortcut)
    return nn.Sequential(first, *(Bottleneck(4 * planes, planes) for _ in range(blocks - 1)))
