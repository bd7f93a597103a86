"""Nets to load, and what loading a file comes to: their features, or one sentence."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from scdd.checkpoint import save_weights
from scdd.config.stem import Stem
from scdd.errors import CheckpointError
from scdd.foreign import load_backbone
from scdd.models import create_model
from tests.foreign import layouts

SMALL = Stem(kernel=3, stride=1, padding=1, max_pool=False)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A ResNet-18 for large images with a classifier of 7 classes."""
    torch.manual_seed(0)
    return layouts.trained(torchvision.models.resnet18(num_classes=7))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(1)
    return layouts.trained(layouts.small_resnet18())


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """The smallest net of ours, whose names are also those of other people's CIFAR nets."""
    torch.manual_seed(2)
    return layouts.trained(create_model("resnet8", 7, 32))


def state_of(net: nn.Module) -> tuple[layouts.State, layouts.State]:
    head = {k: v for k, v in net.state_dict().items() if k.startswith("fc.")}
    return layouts.backbone(net), head


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


def features(net: nn.Module) -> torch.Tensor:
    """Of a net whose classifier is called fc, before it; the classifier itself stays as it is."""
    without: Any = copy.deepcopy(net)
    without.fc = nn.Identity()
    without = without.eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        return without(images())


def same(loaded: Any, net: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(loaded.backbone.eval()(images()), features(net))


def refusal(path: Path, arch: str = "resnet18", **kwargs: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        load_backbone(path, arch, 32, **kwargs)
    sentence = str(error.value)
    assert sentence.startswith(f"{kwargs.get('head') or path}: ") and "\n" not in sentence
    return sentence


def own(path: Path, model: Any, **more: Any) -> Path:
    names = ("arch", "image_size", "num_classes", "stem", "stem_spec")
    about = {name: getattr(model, name) for name in names}
    save_weights(path, model.state_dict(), {**about, **more})
    return path
