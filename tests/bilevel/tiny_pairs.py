"""Everything small: real images of 8 px, a teacher with 32 outputs, settings of seconds."""

from typing import Any

import torch
from torch import Tensor, nn

from scdd.config.condense_pairs import CondensePairsConfig
from scdd.datasets import ResidentSource
from scdd.models import create_model

SIZE, DIM = 8, 32
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
CPU = torch.device("cpu")
RAW = {"parameterisation": "raw", "rotations": False, "approximation": False}
STORED = {"approximation": False}
BASES = {"rotations": False, "approximation": False}


def source(count: int = 60, seed: int = 0) -> ResidentSource:
    """Noisy images of four classes, each with a bright corner."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.randint(120, (count, 3, SIZE, SIZE), generator=draw)
    half = SIZE // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = half * (label // 2), half * (label % 2)
        image[:, top : top + half, left : left + half] += 130
    return ResidentSource(images.to(torch.uint8), labels, tuple("abcd"), MEAN, STD)


class Projected(nn.Module):
    """A backbone and a random projection of its features to DIM outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = create_model("convnet_krr_w32", 0, SIZE)
        self.project = nn.Linear(4 * DIM, DIM)
        self.feature_dim = DIM

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.trunk(x))


def teacher() -> nn.Module:
    """A frozen net whose BatchNorm has statistics and weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Projected().train()
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.3)
            for _ in range(20):
                net(torch.randn(32, 3, SIZE, SIZE))
    return net.eval().requires_grad_(False)


def settings(**changes: Any) -> CondensePairsConfig:
    """Boost in seconds; sections that are given change their keys alone."""
    base: dict[str, Any] = {
        "budget_n": 10,
        "pairs": 6,
        "steps": 12,
        "batch": 16,
        "lr": 1e-2,
        "crop_padding": 1,
        "pool": {"models": 2, "arch": "convnet_krr_w32", "age": 6, "lr": 0.05},
        "bases": {"images": 10, "targets": 8},
        "approximate": {"hidden": 2, "steps": 50},
    }
    for key, value in changes.items():
        base[key] = base[key] | value if isinstance(value, dict) else value
    return CondensePairsConfig.model_validate(base)
