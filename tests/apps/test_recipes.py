"""What crossarch changes on stock networks for a short training, and only there."""

from typing import Any

import torch
from torch import nn

from scdd.models import create_model
from scdd_apps.crossarch.recipes import prepare


def test_slow_batchnorm_is_quickened_only_for_a_short_training():
    for steps, momentum in ((400, 0.1), (100_000, 0.01)):
        net = create_model("mobilenet_v3_large", 10, 16)
        changes = prepare(net, "mobilenet_v3_large", 16, steps)
        found = {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
        assert found == {momentum}
        assert changes == (["BatchNorm momentum 0.1 instead of 0.01"] if steps == 400 else [])


def test_positions_of_a_small_vit_start_as_large_as_its_patches():
    torch.manual_seed(0)
    net: Any = create_model("vit_tiny", 10, 16)
    assert len(prepare(net, "vit_tiny", 16, 400)) == 1
    patches = net.backbone.patch_embed(torch.randn(64, 3, 16, 16))
    ratio = (net.backbone.pos_embed.std() / patches.std()).item()
    assert 0.5 < ratio < 2


def test_nothing_else_is_changed():
    for arch in ("resnet18", "vgg11"):
        torch.manual_seed(0)
        net = create_model(arch, 10, 16)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        assert prepare(net, arch, 16, 400) == []
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
