"""Cutting channels out of networks: dead ones leave no trace, and what is left still trains."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from scdd.models import create_model
from scdd_apps.prune.plan import PRUNABLE
from scdd_apps.prune.surgery import coupled_channels, remove_channels, replay
from tests.apps.cuts import cut_by

SIZE = 16
LARGE = ("resnet50", "resnet101", "regnet_x_8gf")
EVERY = [pytest.param(arch, marks=pytest.mark.slow) if arch in LARGE else arch for arch in PRUNABLE]


def network(arch: str) -> Any:
    """A network in eval mode whose BatchNorm layers are all different from fresh ones."""
    torch.manual_seed(0)
    model = create_model(arch, 10, SIZE).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.2, 1)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", EVERY)
def test_cutting_channels_that_are_off_changes_no_output(arch: str):
    model = network(arch)
    layers = coupled_channels(model, SIZE)
    draw = torch.Generator().manual_seed(2)
    removed = {
        layer.root: layer.channels(
            torch.randperm(layer.positions, generator=draw)[: layer.positions // 3].tolist()
        )
        for layer in layers
    }
    for layer in layers:
        for module in layer.norms or layer.layers:
            assert module.bias is not None
            module.weight.data[removed[layer.root]] = 0
            module.bias.data[removed[layer.root]] = 0
    with torch.no_grad():
        before = model(images())
    size_before = sum(p.numel() for p in model.parameters())
    remove_channels(model, SIZE, removed)
    assert sum(p.numel() for p in model.parameters()) < 0.85 * size_before
    with torch.no_grad():
        after = model(images())
    assert before.std() > 1e-4
    assert torch.allclose(before, after, atol=1e-4 * before.abs().max().item(), rtol=0)


def test_vgg11_has_as_many_weights_as_its_widths_say():
    model = network("vgg11")
    layers = coupled_channels(model, SIZE)
    assert [layer.root for layer in layers] == [
        f"features.{at}" for at in (0, 4, 8, 11, 15, 18, 22, 25)
    ]
    cut_by(model, SIZE, 0.5)
    widths = [3] + [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(widths[1:]) == 1376
    # 3x3 weights and a bias; a BatchNorm scale and shift; and the classifier.
    expected = sum((9 * i + 3) * o for i, o in pairwise(widths))
    expected += 10 * widths[-1] + 10
    assert sum(p.numel() for p in model.parameters()) == expected


def test_residual_sums_of_resnet18_tie_their_channels_together():
    layers = {layer.root: layer for layer in coupled_channels(network("resnet18"), SIZE)}
    # Per stage the stream (of all blocks and the shortcut) and the inside of each of two blocks.
    assert sorted(len(layer.norms) for layer in layers.values()) == [1] * 8 + [3] * 4
    assert sum(len(layer.norms) for layer in layers.values()) == 20
    assert len(layers["conv1"].norms) == 3


def test_squeeze_and_excitation_goes_with_the_channels_that_it_scales():
    model = network("mobilenet_v3_large")
    roots = {layer.root: layer for layer in coupled_channels(model, SIZE)}
    scaled = roots["features.4.block.1.0"]
    # The expansion, its depthwise convolution, and the layer that makes their scales.
    assert len(scaled.layers) == 3 and len(scaled.norms) == 2
    remove_channels(model, SIZE, {scaled.root: range(10)})
    assert model.get_submodule("features.4.block.2.fc2").out_channels == scaled.width == 62


def test_grouped_convolutions_of_regnet_keep_their_groups():
    model = network("regnet_x_400mf")
    groups = {n: m.groups for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert max(groups.values()) == 25
    cut_by(model, SIZE, 0.5)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.groups == groups[name]
            assert module.in_channels % module.groups == module.out_channels % module.groups == 0


def test_only_the_hidden_units_of_a_transformer_are_cut():
    layers = coupled_channels(network("vit_tiny"), SIZE)
    assert [layer.root for layer in layers] == [f"backbone.blocks.{n}.mlp.fc1" for n in range(12)]
    assert all(layer.width == 768 and layer.ties == 1 for layer in layers)


@pytest.mark.parametrize("arch", EVERY)
def test_a_pruned_network_takes_a_training_step_that_reaches_every_weight(arch: str):
    model = network(arch)
    cut_by(model, SIZE, 0.7)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    nn.functional.cross_entropy(model(images()), torch.arange(4)).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape, name
    first, parameter = next(model.named_parameters())
    assert not torch.equal(before[first], parameter)


def test_looking_for_channels_leaves_mode_statistics_and_frozen_weights_alone():
    model = network("vgg11").train().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        assert len(coupled_channels(model, SIZE)) == 8
    assert model.training and not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_removing_nothing_changes_nothing():
    model = network("vgg11")
    before = copy.deepcopy(model.state_dict())
    assert remove_channels(model, SIZE, {}) == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_cannot_lose_all_its_channels():
    with pytest.raises(ValueError, match=r"features\.0: 64 channels are all it has"):
        remove_channels(network("vgg11"), SIZE, {"features.0": range(64)})


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_large", "vit_tiny"])
def test_the_history_cuts_another_network_in_the_same_way(arch: str):
    model, other = network(arch), create_model(arch, 10, SIZE)
    history = cut_by(model, SIZE, 0.4)
    replay(other, SIZE, history)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in other.state_dict().items()} == shapes
