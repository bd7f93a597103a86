"""What torch-pruning's own global pruners get wrong without a word does not happen here.

Every test names one silent failure of a global one-shot pruner and shows that ours does not share
it.
"""

import inspect
from pathlib import Path

import pytest
import torch
import torch_pruning
from torch import nn

from scdd.errors import CheckpointError
from scdd.models import create_model
from scdd_apps import load_pruned
from scdd_apps.prune.channels import floors_of, select
from scdd_apps.prune.criteria import scale_size
from scdd_apps.prune.surgery import coupled_channels, remove_channels
from scdd_apps.report_cost import latencies
from tests.apps.cuts import cut_by
from tests.pickled_code import Code

SIZE, CHANNELS = 8, 224
"""Of resnet8: 16 + 16 + 32 + 32 + 64 + 64 channels."""


def net(arch: str = "resnet8", lowest: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(arch, 5, SIZE)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, lowest, 1)
    return model


def width(model: nn.Module) -> int:
    return sum(layer.width for layer in coupled_channels(model, SIZE))


def scales(model: nn.Module, root: str) -> list[nn.Parameter]:
    (layer,) = [layer for layer in coupled_channels(model, SIZE) if layer.root == root]
    return [norm.weight for norm in layer.norms]


def test_a_a_net_whose_scales_are_all_equal_is_pruned_all_the_same():
    model = create_model("resnet8", 5, SIZE)
    assert width(model) == CHANNELS
    cut_by(model, SIZE, 0.5)
    assert width(model) == CHANNELS / 2


def test_b_a_layer_that_is_off_as_a_whole_is_cut_to_its_floor_and_not_left_whole():
    model = net()
    for scale in scales(model, "layer3.0.conv1"):
        scale.data.fill_(1e-6)
    cut_by(model, SIZE, 0.5)
    assert model.get_submodule("layer3.0.conv1").out_channels == 8
    assert width(model) == CHANNELS / 2


@pytest.mark.parametrize("steps", [1, 5])
def test_c_no_layer_falls_below_its_floor_in_one_step_or_in_five(steps: int):
    model = net()
    for scale in scales(model, "layer3.0.conv1"):
        scale.data.mul_(0.1)  # First in the order, so that nothing but the floor keeps it.
    floors = floors_of(coupled_channels(model, SIZE))
    assert min(floors.values()) == 8
    for step in range(steps):
        layers = coupled_channels(model, SIZE)
        wanted = round(0.75 * CHANNELS * (step + 1) / steps) - (CHANNELS - width(model))
        remove_channels(model, SIZE, select(layers, wanted, scale_size, floors))
    assert width(model) == CHANNELS / 4
    assert all(layer.width >= 8 for layer in coupled_channels(model, SIZE))


def test_d_a_layer_that_would_round_to_nothing_is_cut_to_one_multiple():
    model = net()
    for scale in scales(model, "layer3.0.conv1"):
        scale.data[3:].mul_(1e-3)  # 3 of 64 channels would be left.
    cut_by(model, SIZE, 0.4, multiple=16)
    assert model.get_submodule("layer3.0.conv1").out_channels == 16
    assert abs(1 - width(model) / CHANNELS - 0.4) < 8 / CHANNELS
    assert all(layer.width % 16 == 0 for layer in coupled_channels(model, SIZE))


def test_e_frozen_parameters_are_cut_and_stay_frozen_until_they_are_new():
    frozen, free = net().requires_grad_(False), net()
    with torch.no_grad():
        cut_by(frozen, SIZE, 0.5)
    cut_by(free, SIZE, 0.5)
    assert width(frozen) == CHANNELS / 2
    for ours, theirs in zip(frozen.state_dict().values(), free.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_f_one_network_leaves_nothing_behind_that_another_one_meets():
    alone, after = net("regnet_x_400mf"), net("regnet_x_400mf")
    cut_by(alone, SIZE, 0.5)
    cut_by(net("resnet8"), SIZE, 0.5)
    cut_by(after, SIZE, 0.5)
    shapes = [value.shape for value in alone.state_dict().values()]
    assert [value.shape for value in after.state_dict().values()] == shapes
    for kind in (torch_pruning.pruner.BasePruner, torch_pruning.pruner.BNScalePruner):
        defaults = inspect.signature(kind.__init__).parameters.values()
        assert not any(isinstance(p.default, dict) and p.default for p in defaults)


def test_g_a_network_in_training_stays_in_training():
    model = net().train()
    cut_by(model, SIZE, 0.5)
    assert all(module.training for module in model.modules())


def test_h_a_network_without_batchnorm_is_cut_by_its_filters():
    model = net("squeezenet1_0")
    before = width(model)
    cut_by(model, SIZE, 0.5)
    assert abs(width(model) / before - 0.5) < 0.01


def test_i_reading_a_pruned_network_runs_no_code(tmp_path: Path):
    path, proof = tmp_path / "pruned.safetensors", tmp_path / "ran"
    torch.save({"model": Code(proof)}, path)
    with pytest.raises(CheckpointError, match=str(path)):
        load_pruned(path)
    assert not proof.exists()


def test_j_latency_is_measured_on_a_cpu():
    small, large = net("resnet8").eval(), net("resnet8x4").eval()
    found = latencies([small, large], torch.zeros(1, 3, 32, 32))
    assert len(found) == 2 and all(0 < each.p50 <= each.p90 for each in found)
