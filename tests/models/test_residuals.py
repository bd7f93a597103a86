"""Residual branches that start at zero, against torchvision's own switch and the shortcut."""

import pytest
import torch
from torchvision.models import resnet18, resnet50

from scdd.errors import ConfigError
from scdd.models import create_model, zero_init_residual


@pytest.mark.parametrize(("arch", "build"), [("resnet18", resnet18), ("resnet50", resnet50)])
def test_the_scales_that_are_zero_are_those_that_torchvision_sets(arch: str, build):
    model = create_model(arch, 0, 224)
    zero_init_residual(model)
    wanted = build(zero_init_residual=True).state_dict()
    found = model.state_dict()
    norms = [name for name, tensor in found.items() if name.endswith("weight") and tensor.ndim == 1]
    assert len(norms) > 15
    for name in norms:
        assert torch.equal(found[name], wanted[name]), name


def test_a_block_starts_as_its_shortcut():
    model = create_model("resnet8", 0, 8)
    zero_init_residual(model)
    x = torch.rand(4, 16, 8, 8)
    assert torch.equal(model.layer1(x), x)
    block = model.layer2[0]
    assert torch.equal(block(x), block.downsample(x).relu())


def test_a_net_without_such_blocks_is_refused():
    with pytest.raises(ConfigError) as caught:
        zero_init_residual(create_model("vgg11", 0, 32))
    assert str(caught.value) == (
        "zero_init_residual: vgg11 has no residual blocks of a ResNet; switch it off or choose a "
        "ResNet"
    )
