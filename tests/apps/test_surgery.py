"""Cutting channels out of networks: dead ones leave no trace, and what is left still trains."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from scdd.models import create_model
from scdd_apps.prune.channels import select
from scdd_apps.prune.surgery import coupled_channels, remove_channels, replay

SIZE = 16


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


@pytest.mark.parametrize("arch", ["vgg11", "resnet18"])
def test_cutting_channels_that_are_off_changes_no_output(arch: str):
    model = network(arch)
    layers = coupled_channels(model, SIZE)
    draw = torch.Generator().manual_seed(2)
    removed = {
        layer.root: torch.randperm(layer.width, generator=draw)[: layer.width // 3].tolist()
        for layer in layers
    }
    for layer in layers:
        for norm in layer.norms:
            norm.weight.data[removed[layer.root]] = 0
            norm.bias.data[removed[layer.root]] = 0
    with torch.no_grad():
        before = model(images())
    size_before = sum(p.numel() for p in model.parameters())
    remove_channels(model, SIZE, removed)
    assert sum(p.numel() for p in model.parameters()) < 0.6 * size_before
    with torch.no_grad():
        after = model(images())
    assert before.std() > 0.01
    assert torch.allclose(before, after, atol=1e-5 * before.abs().max().item(), rtol=0)


def test_vgg11_has_as_many_weights_as_its_widths_say():
    model = network("vgg11")
    layers = coupled_channels(model, SIZE)
    assert [layer.root for layer in layers] == [
        f"features.{at}" for at in (0, 4, 8, 11, 15, 18, 22, 25)
    ]
    remove_channels(model, SIZE, select(layers, 0.5))
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


@pytest.mark.parametrize("arch", ["vgg11", "resnet18"])
def test_a_pruned_network_takes_a_training_step_that_reaches_every_weight(arch: str):
    model = network(arch)
    remove_channels(model, SIZE, select(coupled_channels(model, SIZE), 0.7))
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


@pytest.mark.parametrize("arch", ["vgg11", "resnet18"])
def test_the_history_cuts_another_network_in_the_same_way(arch: str):
    model, other = network(arch), create_model(arch, 10, SIZE)
    history = remove_channels(model, SIZE, select(coupled_channels(model, SIZE), 0.4))
    replay(other, SIZE, history)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in other.state_dict().items()} == shapes
