"""The choice of channels against brute force, and its promises: exact counts, floors, fair ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scdd.errors import RunError
from scdd_apps.prune.channels import Coupled, achieved, check_achieved, check_reachable, select

VGG11_WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)


def layers_of(*scales: torch.Tensor) -> list[Coupled]:
    """One layer per tensor of BatchNorm scales."""
    layers = []
    for number, scale in enumerate(scales):
        norm = nn.BatchNorm2d(len(scale))
        norm.weight.data = scale.float()
        layers.append(Coupled(f"conv{number}", (norm,)))
    return layers


def random_layers(seed: int, widths: tuple[int, ...]) -> list[Coupled]:
    draw = torch.Generator().manual_seed(seed)
    return layers_of(*(torch.randn(width, generator=draw) for width in widths))


def brute_force(layers: list[Coupled], count: int) -> dict[str, list[int]]:
    """Take the smallest scale there is, `count` times, from layers that can spare one."""
    left = [dict(enumerate(layer.norms[0].weight.abs().tolist())) for layer in layers]
    gone: dict[str, list[int]] = {}
    for _ in range(count):
        choices = [
            (scale, number, channel)
            for number, channels in enumerate(left)
            if len(channels) > max(8, -(-layers[number].width // 10))
            for channel, scale in channels.items()
        ]
        if not choices:
            break
        _, number, channel = min(choices)
        del left[number][channel]
        gone.setdefault(layers[number].root, []).append(channel)
    return {root: sorted(channels) for root, channels in gone.items()}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    widths=st.lists(st.integers(1, 120), min_size=1, max_size=5),
    ratio=st.floats(0, 0.99),
)
def test_the_choice_is_that_of_taking_the_smallest_scale_again_and_again(seed, widths, ratio):
    layers = random_layers(seed, tuple(widths))
    assert select(layers, ratio) == brute_force(layers, round(ratio * sum(widths)))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5, 0.7, 0.85])
def test_exactly_the_asked_share_of_vgg11_goes(ratio: float):
    layers = random_layers(0, VGG11_WIDTHS)
    removed = select(layers, ratio)
    assert sum(map(len, removed.values())) == round(ratio * 2752)
    assert achieved(layers, removed) == pytest.approx(ratio, abs=1 / 2752)


def test_a_layer_that_is_all_but_off_keeps_its_floor_and_others_make_up_for_it():
    layers = layers_of(torch.full((200,), 1e-6), torch.linspace(0.5, 1, 200), torch.ones(10))
    removed = select(layers, 0.7)
    assert len(removed["conv0"]) == 180
    assert removed["conv1"] == list(range(107))  # 287 of 410 in all, the smallest first
    assert "conv2" not in removed


def test_equal_scales_thin_every_layer_alike():
    layers = layers_of(*(torch.ones(width) for width in VGG11_WIDTHS))
    removed = select(layers, 0.5)
    assert sum(map(len, removed.values())) == 1376
    for layer in layers:
        assert abs(len(removed[layer.root]) - layer.width / 2) <= 1


def test_the_sign_of_a_scale_does_not_matter():
    scales = torch.linspace(0.1, 1, 40)
    signs = torch.where(torch.arange(40) % 3 == 0, -1.0, 1.0)
    assert select(layers_of(scales), 0.5) == select(layers_of(scales * signs), 0.5)


def test_coupled_layers_are_ranked_by_their_mean():
    first, second = nn.BatchNorm2d(20), nn.BatchNorm2d(20)
    first.weight.data, second.weight.data = torch.arange(20.0), -torch.arange(20.0).flip(0)
    second.weight.data[5] = 0
    coupled = Coupled("conv", (first, second))
    assert coupled.importance().tolist() == [9.5] * 5 + [2.5] + [9.5] * 14
    assert select([coupled], 0.05) == {"conv": [5]}


def test_a_ratio_that_the_floors_forbid_is_refused_with_what_can_be_had():
    layers = random_layers(0, VGG11_WIDTHS)
    check_reachable("vgg11", layers, 0.9)
    with pytest.raises(RunError, match=r"0\.95 was asked for, but 0\.89\d is the most"):
        check_reachable("vgg11", layers, 0.95)


def test_an_achieved_ratio_two_points_off_is_refused():
    check_achieved("vgg11", 0.5, 0.481)
    with pytest.raises(RunError, match=r"0\.5 was asked for, but 0\.470"):
        check_achieved("vgg11", 0.5, 0.47)
