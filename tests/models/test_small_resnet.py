"""The small residual nets against closed forms and published sizes."""

import pytest
import torch
from torch import nn

from scdd.models import create_model
from scdd.models.small_resnet import small_resnet


def size_by_hand(blocks: int, widths: tuple[int, ...], classes: int) -> int:
    """Weights of the convolutions, two numbers per BatchNorm channel, and the classifier."""
    total = 27 * widths[0] + 2 * widths[0]
    channels = widths[0]
    for stage, width in enumerate(widths[1:]):
        for block in range(blocks):
            total += 9 * channels * width + 9 * width * width + 4 * width
            if channels != width or (stage > 0 and block == 0):
                total += channels * width + 2 * width
            channels = width
    return total + channels * classes + classes


@pytest.mark.parametrize(
    ("arch", "blocks", "widths"),
    [
        ("resnet8", 1, (16, 16, 32, 64)),
        ("resnet8x2", 1, (16, 32, 64, 128)),
        ("resnet8x4", 1, (32, 64, 128, 256)),
        ("resnet10w16", 1, (16, 16, 32, 64, 128)),
        ("resnet14", 2, (16, 16, 32, 64)),
        ("resnet20", 3, (16, 16, 32, 64)),
    ],
)
def test_sizes_follow_from_depth_and_widths(arch, blocks, widths):
    count = sum(p.numel() for p in create_model(arch, 100, 32).parameters())
    assert count == size_by_hand(blocks, widths, 100)


def test_sizes_are_those_of_the_distillation_literature():
    for arch, millions in {"resnet20": 0.28, "resnet8x4": 1.23}.items():
        count = sum(p.numel() for p in create_model(arch, 100, 32).parameters())
        assert round(count / 1e6, 2) == millions


def test_the_depth_counts_the_layers_with_weights_on_the_main_path():
    for depth in (8, 14, 20, 32):
        net = small_resnet(depth, 1, 10)
        main = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
        assert len([name for name in main if "downsample" not in name]) + 1 == depth


def test_stages_have_strides_1_2_2():
    net = small_resnet(8, 1, 10)
    x = torch.zeros(1, 16, 32, 32)
    shapes = []
    for stage in (net.layer1, net.layer2, net.layer3):
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.mark.parametrize(("depth", "factor"), [(2, 1), (9, 1), (8, 3)])
def test_depths_and_factors_that_make_no_net_are_refused(depth, factor):
    with pytest.raises(ValueError, match=f"depth {depth} and factor {factor}"):
        small_resnet(depth, factor, 10)
