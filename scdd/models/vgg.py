"""VGG-11 with BatchNorm (arXiv:1409.1556, net A), a global average pool and one linear layer.

The three wide linear layers of the original are left out: at 32 px they would repeat a 1x1 map
49 times and hold 120 of 129 million parameters. The keys of `features` are torchvision's.
"""

import torch
from torch import nn

# Output channels of the 3x3 convolutions, one tuple for each run that ends in a 2x2 max-pool.
VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG(nn.Module):
    """Runs of 3x3 convolutions with BatchNorm on [B, 3, H, W]; a 2x2 max-pool ends each run."""

    def __init__(self, runs: tuple[tuple[int, ...], ...], num_classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for run in runs:
            for width in run:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
