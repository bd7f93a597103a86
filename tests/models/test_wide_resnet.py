"""The wide ResNets against closed forms, published sizes and torchvision at width 1."""

from typing import Any

import pytest
import torch
import torchvision

from scdd.models import create_model
from scdd.models.wide_resnet import BLOCKS, WideResNet

# Millions of parameters without classifier, from SwAV's table of larger networks.
PUBLISHED = {2: 94, 4: 375, 5: 586}


def size_by_hand(factor: int) -> int:
    """Convolutions and two numbers per BatchNorm channel, without the classifier."""
    width = 64 * factor
    total, inputs = 3 * 49 * width + 2 * width, width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = width * 2**stage
        for block in range(blocks):
            total += inputs * inner + 9 * inner**2 + 4 * inner**2 + 2 * (inner + inner + 4 * inner)
            if block == 0:
                total += 4 * inputs * inner + 8 * inner
            inputs = 4 * inner
    return total


def on_meta(factor: int) -> Any:
    with torch.device("meta"):
        return create_model(f"resnet50w{factor}", 0, 224)


@pytest.mark.parametrize("factor", PUBLISHED)
def test_sizes_are_the_published_ones_and_follow_from_the_widths(factor):
    count = sum(p.numel() for p in on_meta(factor).parameters())
    assert count == size_by_hand(factor)
    assert round(count / 1e6) == PUBLISHED[factor]


@pytest.mark.parametrize("factor", PUBLISHED)
def test_keys_are_torchvisions_and_every_width_is_multiplied(factor):
    with torch.device("meta"):
        theirs = torchvision.models.resnet50().state_dict()
    ours = create_shapes(factor)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        scales = [1 if n in (1, 3, 7, 1000) else factor for n in tensor.shape]
        assert ours[name] == [n * scale for n, scale in zip(tensor.shape, scales, strict=True)]


def create_shapes(factor: int) -> dict[str, list[int]]:
    with torch.device("meta"):
        model = create_model(f"resnet50w{factor}", 1000, 224)
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def test_features_are_2048_times_the_factor_wide():
    model = on_meta(4)
    assert model.stem == "stock" and model.feature_dim == 8192
    assert model.eval()(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 8192)


def test_at_width_1_it_computes_what_torchvision_computes():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(num_classes=5).eval()
    ours = WideResNet(BLOCKS, 1, 5).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_it_starts_as_torchvisions_nets_do():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50().state_dict()
    for name, tensor in WideResNet(BLOCKS, 1, 1000).state_dict().items():
        if tensor.dim() == 4:
            assert tensor.std().item() == pytest.approx(theirs[name].std().item(), rel=0.05), name
        elif "fc" not in name:
            assert torch.equal(tensor, theirs[name]), name
