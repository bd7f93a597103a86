"""ConvNet, AlexNet and MobileNet of the distillation literature, written out by hand."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import MobileNetV2

from scdd.models import create_model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def agree(ours: Any, theirs: nn.Module, size: int) -> None:
    """Both nets list their layers in the order of the forward pass; weights are handed over so."""
    values = ours.state_dict().values()
    names = theirs.state_dict()
    assert len(values) == len(names)
    theirs.load_state_dict(OrderedDict(zip(names, values, strict=True)))
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def block(channels: int, width: int, norm: type[nn.Module]) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, 1, 1), norm(width), nn.ReLU(), nn.AvgPool2d(2, 2)]


def test_the_convnet_of_32_px_has_the_320010_parameters_of_the_literature():
    assert parameters(create_model("convnet", 10, 32)) == 320_010
    assert parameters(create_model("convnet_bn", 10, 32)) == 320_010


@pytest.mark.parametrize(
    ("arch", "size", "widths", "side"),
    [
        ("convnet_bn", 16, (128, 128, 128), 2),
        ("convnet_bn", 32, (128, 128, 128), 4),
        ("convnet_bn", 64, (128, 128, 128, 128), 4),
        ("convnet_bn_w16", 32, (16, 16, 16), 4),
        ("convnet_bn_w32", 64, (32, 32, 32, 32), 4),
        ("convnet_krr", 32, (128, 256, 512), 4),
        ("convnet_krr", 64, (64, 128, 256, 512), 4),
        ("convnet_krr_w32", 16, (8, 16, 32), 2),
        ("convnet_krr_w128", 32, (32, 64, 128), 4),
        ("convnet_krr", 224, (32, 64, 128, 256, 512), 7),
    ],
)
def test_a_convnet_is_blocks_and_a_linear_layer_on_the_flattened_map(arch, size, widths, side):
    channels = (3, *widths[:-1])
    layers = [
        layer
        for c, w in zip(channels, widths, strict=True)
        for layer in block(c, w, nn.BatchNorm2d)
    ]
    theirs = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side**2, 5))
    ours = create_model(arch, 5, size)
    assert ours.feature_dim == widths[-1] * side**2
    agree(ours, theirs, size)


@pytest.mark.parametrize(("size", "millions"), [(32, 155), (64, 234)])
def test_multiply_adds_of_the_doubling_convnet_are_the_known_ones(size, millions):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        create_model("convnet_krr", 0, size)(torch.empty(1, 3, size, size))
    assert round(counter.get_total_flops() / 2e6) == millions


def test_the_norm_of_the_convnet_is_instance_norm_with_scale_and_shift():
    norm = create_model("convnet", 10, 32).features[1]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 128, 5, 5)
    expected = F.instance_norm(x, weight=norm.weight, bias=norm.bias)
    torch.testing.assert_close(norm(x), expected)


def alexnet_by_hand(stride: int, side: int) -> nn.Module:
    def conv(channels: int, width: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        layer = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
        return [layer, nn.BatchNorm2d(width), nn.ReLU()]

    return nn.Sequential(
        *(*conv(3, 128, 5, stride), nn.MaxPool2d(2)),
        *(*conv(128, 192, 5), nn.MaxPool2d(2)),
        *(*conv(192, 256, 3), *conv(256, 192, 3), *conv(192, 192, 3), nn.MaxPool2d(2)),
        *(nn.AvgPool2d(side // 4), nn.Flatten(), nn.Linear(192 * 16, 5)),
    )


@pytest.mark.parametrize(("size", "stride", "side"), [(32, 1, 4), (64, 2, 4), (256, 4, 8)])
def test_the_alexnet_is_the_one_written_out_by_hand(size, stride, side):
    agree(create_model("alexnet", 5, size), alexnet_by_hand(stride, side), size)


def test_the_mobilenet_is_torchvisions_of_expansion_2_with_four_more_shortcuts():
    setting = [[1, 16, 1, 1], [2, 24, 2, 2], [2, 32, 3, 2], [2, 64, 4, 2], [2, 96, 3, 1]]
    setting += [[2, 160, 3, 2], [2, 320, 1, 1]]
    theirs = parameters(MobileNetV2(num_classes=10, inverted_residual_setting=setting))
    shortcuts = sum(c * w + 2 * w for c, w in ((32, 16), (16, 24), (64, 96), (160, 320)))
    first_block = 32 * 32 + 2 * 32  # its 1x1 convolution, which torchvision leaves out
    assert parameters(create_model("mobilenet", 10, 32)) == theirs + shortcuts + first_block


def test_the_maps_of_the_mobilenet_at_32_px_have_32_to_4_pixels_a_side():
    with torch.device("meta"):
        net: Any = create_model("mobilenet", 10, 32)
        x = net.conv1(torch.empty(1, 3, 32, 32))
    sides = [(x := stage(x)).shape[-1] for stage in net.layers]
    assert sides == [32, 32, 16, 8, 8, 4, 4]


def test_a_block_of_the_mobilenet_adds_its_input_where_it_keeps_width_and_size():
    inner = create_model("mobilenet", 10, 32).layers[2][1].eval()
    nn.init.zeros_(inner.bn3.weight)
    x = torch.randn(1, 32, 4, 4)
    with torch.no_grad():
        assert torch.equal(inner(x), x)
