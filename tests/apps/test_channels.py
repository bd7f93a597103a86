"""The choice of channels against brute force, and its promises: exact counts, floors, fair ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scdd.errors import ConfigError, RunError
from scdd_apps.prune import channels
from scdd_apps.prune.channels import (
    Coupled,
    achieved,
    at_random,
    check_achieved,
    check_reachable,
    floors_of,
)
from scdd_apps.prune.criteria import filter_rank, scale_size

VGG11_WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)


def layers_of(*scales: torch.Tensor) -> list[Coupled]:
    """One layer per tensor of BatchNorm scales."""
    layers = []
    for number, scale in enumerate(scales):
        conv, norm = nn.Conv2d(3, len(scale), 1), nn.BatchNorm2d(len(scale))
        norm.weight.data = scale.float()
        layers.append(Coupled(f"conv{number}", (conv,), (norm,)))
    return layers


def select(layers: list[Coupled], ratio: float, multiple: int = 1) -> dict[str, list[int]]:
    """Choose a share of all channels by their scales."""
    count = round(ratio * sum(layer.width for layer in layers))
    return channels.select(layers, count, scale_size, floors_of(layers), multiple)


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
    coupled = Coupled("conv", (nn.Conv2d(3, 20, 1),), (first, second))
    assert scale_size(coupled).tolist() == [9.5] * 5 + [2.5] + [9.5] * 14
    assert select([coupled], 0.05) == {"conv": [5]}


def test_a_ratio_that_the_floors_forbid_is_refused_with_what_can_be_had():
    layers = random_layers(0, VGG11_WIDTHS)
    check_reachable("vgg11", layers, 0.9)
    with pytest.raises(ConfigError, match=r"0\.95 was asked for, but 0\.89\d is the most"):
        check_reachable("vgg11", layers, 0.95)


def test_an_achieved_ratio_two_points_off_is_refused():
    check_achieved("vgg11", 0.5, 0.481)
    with pytest.raises(RunError, match=r"0\.5 was asked for, but 0\.470"):
        check_achieved("vgg11", 0.5, 0.47)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    widths=st.lists(st.integers(1, 120), min_size=1, max_size=5),
    ratio=st.floats(0, 0.99),
    multiple=st.sampled_from([2, 8, 16]),
)
def test_widths_that_shrink_become_multiples_and_never_fall_below_a_floor(
    seed, widths, ratio, multiple
):
    layers = random_layers(seed, tuple(widths))
    removed = select(layers, ratio, multiple)
    for layer in layers:
        gone = removed.get(layer.root, [])
        left = layer.width - len(gone)
        assert left >= min(layer.width, max(8, -(-layer.width // 10)))
        assert not gone or left % multiple == 0
        smallest = layer.norms[0].weight.abs().argsort()[: len(gone)]
        assert gone == sorted(smallest.tolist())
    assert sum(map(len, removed.values())) <= ratio * sum(widths) + 1 + multiple / 2


def test_multiples_come_near_the_ratio_where_layers_are_wide():
    layers = random_layers(0, VGG11_WIDTHS)
    assert achieved(layers, select(layers, 0.5, 8)) == pytest.approx(0.5, abs=8 / 2752)


def test_grouped_channels_go_by_position_the_same_in_each_group():
    # Two groups of ten: position 3 is small on average, position 7 in the second group alone.
    scales = torch.ones(20)
    scales[3], scales[13], scales[17] = 0.2, 0.4, 0.5
    conv, norm = nn.Conv2d(20, 20, 1, groups=2), nn.BatchNorm2d(20)
    norm.weight.data = scales
    layer = Coupled("conv", (conv,), (norm,), ties=2)
    assert select([layer], 0.1) == {"conv": [3, 13]}
    assert select([layer], 0.2) == {"conv": [3, 7, 13, 17]}


def test_filters_are_ranked_by_their_norm_in_their_own_layer_alone():
    convs = [nn.Conv2d(4, 20, 3), nn.Conv2d(64, 40, 1)]
    for conv in convs:
        conv.weight.data *= torch.linspace(2, 1, len(conv.weight)).view(-1, 1, 1, 1) / (
            conv.weight.data.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
        )
    layers = [Coupled(str(at), (conv,)) for at, conv in enumerate(convs)]
    removed = channels.select(layers, 30, filter_rank, floors_of(layers))
    assert removed == {"0": list(range(10, 20)), "1": list(range(20, 40))}


def test_random_channels_are_as_many_per_layer_but_others():
    layers = random_layers(0, VGG11_WIDTHS)
    chosen = select(layers, 0.5)
    counts = {root: len(gone) for root, gone in chosen.items()}
    one, two = (at_random(layers, counts, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert {root: len(set(gone)) for root, gone in one.items()} == counts
    assert one != two and one != chosen
    assert one == at_random(layers, counts, torch.Generator().manual_seed(0))
    everything = torch.cat([torch.tensor(one[root]) / counts[root] for root in counts])
    assert 0.8 < everything.mean() < 1.2  # the whole width is drawn from


def test_a_multiple_that_leaves_nothing_to_remove_is_refused():
    layers = random_layers(0, (64, 64))
    check_reachable("net", layers, 0.5, 32)
    with pytest.raises(ConfigError, match=r"0\.5 was asked for, but 0\.000 is the most.*multiples"):
        check_reachable("net", layers, 0.5, 64)
