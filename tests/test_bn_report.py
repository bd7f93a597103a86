"""The figures about BatchNorm statistics against numpy, scipy and torch's own layers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import Tensor, nn
from torchvision.models import resnet18

from scdd.bn_report import BatchNormLayer, batchnorm_layers, channel_statistics, gaussian_entropy
from scdd.errors import CheckpointError

ORIGIN = Path("teacher.pt")

values = st.lists(st.floats(-100, 100), min_size=1, max_size=20)


def layer(means: list[float], variances: list[float] | None = None) -> BatchNormLayer:
    mean = torch.tensor(means, dtype=torch.float64)
    var = (
        torch.ones_like(mean) if variances is None else torch.tensor(variances, dtype=torch.float64)
    )
    return BatchNormLayer("bn", mean, var)


def entry(name: str, mean: Tensor, var: Tensor) -> dict[str, Tensor]:
    return {f"{name}.weight": mean, f"{name}.running_mean": mean, f"{name}.running_var": var}


@pytest.fixture(scope="module")
def used_resnet() -> nn.Module:
    """A torchvision ResNet-18 whose statistics are of data."""
    torch.manual_seed(0)
    model = resnet18().train()
    for _ in range(2):
        model(2 * torch.randn(8, 3, 32, 32) + 0.5)
    return model


def test_layers_of_a_resnet_are_found_in_the_order_of_the_network(used_resnet: nn.Module):
    truth = [name for name, m in used_resnet.named_modules() if isinstance(m, nn.BatchNorm2d)]
    found = [layer.name for layer in batchnorm_layers(used_resnet.state_dict(), ORIGIN)]
    assert found == truth and len(found) == 20


def test_figures_of_a_resnet_are_those_of_numpy(used_resnet: nn.Module):
    layers = batchnorm_layers(used_resnet.state_dict(), ORIGIN)
    groups = [[layer] for layer in layers] + [layers]
    norms = [m for m in used_resnet.modules() if isinstance(m, nn.BatchNorm2d)]
    truths = [[norm] for norm in norms] + [norms]
    for group, truth in zip(groups, truths, strict=True):
        found = channel_statistics(group)
        means = np.concatenate([norm.running_mean.numpy() for norm in truth]).astype(np.float64)
        variances = np.concatenate([norm.running_var.numpy() for norm in truth]).astype(np.float64)
        assert found.channels == means.size
        assert found.mean_of_means == pytest.approx(means.mean())
        assert found.variance_of_means == pytest.approx(np.var(means)) != 0
        assert found.mean_of_variances == pytest.approx(variances.mean())
        assert found.variance_of_variances == pytest.approx(np.var(variances)) != 0
        normals = torch.distributions.Normal(0, torch.from_numpy(variances).sqrt())
        assert found.entropy == pytest.approx(normals.entropy().sum().item())


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_the_entropy_is_that_of_a_gaussian_vector_with_independent_parts(variances: list[float]):
    truth = multivariate_normal(cov=np.diag(variances)).entropy()
    assert gaussian_entropy(torch.tensor(variances, dtype=torch.float64)) == pytest.approx(truth)


def test_one_gaussian_of_variance_1_has_the_entropy_of_equation_7():
    assert gaussian_entropy(torch.ones(1)) == pytest.approx(1.4189385332)


def test_a_channel_that_never_varied_has_the_entropy_of_a_point():
    assert channel_statistics([layer([0.0, 1.0], [1.0, 0.0])]).entropy == -math.inf


@given(values, st.floats(-10, 10))
def test_scaled_means_vary_by_the_square_of_the_scale(means: list[float], scale: float):
    before = channel_statistics([layer(means)])
    after = channel_statistics([layer([scale * mean for mean in means])])
    assert after.variance_of_means == pytest.approx(
        scale**2 * before.variance_of_means, rel=1e-6, abs=1e-9
    )
    assert after.entropy == before.entropy


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(1e-3, 100)), min_size=1), st.randoms())
def test_the_order_of_channels_does_not_matter(channels: list[tuple[float, float]], dice):
    shuffled = list(channels)
    dice.shuffle(shuffled)
    first, second = (
        channel_statistics([layer(*map(list, zip(*some, strict=True)))])
        for some in (channels, shuffled)
    )
    assert vars(first) == pytest.approx(vars(second), rel=1e-9, abs=1e-9)


@given(st.lists(values, min_size=1, max_size=5))
def test_layers_together_are_one_layer_with_all_their_channels(groups: list[list[float]]):
    apart = channel_statistics([layer(means) for means in groups])
    joined = channel_statistics([layer([mean for means in groups for mean in means])])
    assert vars(apart) == pytest.approx(vars(joined))


def test_the_scale_of_a_convolution_changes_the_figures_but_not_the_network():
    torch.manual_seed(0)
    images, scale = torch.randn(16, 3, 8, 8), 3.0
    found, outputs = [], []
    convolution = nn.Conv2d(3, 6, 3)
    norm = nn.BatchNorm2d(6, eps=1e-12, momentum=None, affine=False)
    net = nn.Sequential(convolution, norm)
    for factor in (1, scale):
        norm.reset_running_stats()
        with torch.no_grad():
            for parameter in convolution.parameters():
                parameter.mul_(factor)
            outputs.append(net(images))
        found.append(channel_statistics(batchnorm_layers(net.state_dict(), ORIGIN)))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    once, scaled = found
    assert scaled.variance_of_means == pytest.approx(scale**2 * once.variance_of_means, rel=1e-4)
    assert scaled.variance_of_variances == pytest.approx(
        scale**4 * once.variance_of_variances, rel=1e-4
    )
    assert scaled.entropy == pytest.approx(once.entropy + 6 * math.log(scale), rel=1e-4)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.SyncBatchNorm(4)],
    ids=str,
)
def test_every_kind_of_batchnorm_with_running_statistics_is_found(norm: nn.Module):
    weights = nn.Sequential(nn.Linear(3, 4), norm).state_dict()
    assert [layer.name for layer in batchnorm_layers(weights, ORIGIN)] == ["1"]


def test_a_file_from_before_batches_were_counted_is_read():
    weights = nn.Sequential(nn.BatchNorm2d(4)).state_dict()
    del weights["0.num_batches_tracked"]
    assert [layer.name for layer in batchnorm_layers(weights, ORIGIN)] == ["0"]


def test_statistics_of_nothing_that_is_a_batchnorm_layer_are_passed_by():
    weights = {
        "centre.running_mean": torch.zeros(4),
        "tracker.running_mean": torch.zeros(4),
        "tracker.running_var": torch.ones(4),
        **entry("bn", torch.zeros(4), torch.ones(4)),
    }
    assert [layer.name for layer in batchnorm_layers(weights, ORIGIN)] == ["bn"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_in_half_precision_are_added_up_in_full(dtype: torch.dtype):
    mean = torch.linspace(-300, 300, 1000).to(dtype)
    found = channel_statistics(batchnorm_layers(entry("bn", mean, mean.abs() + 1), ORIGIN))
    assert found.variance_of_means == pytest.approx(np.var(mean.double().numpy()), rel=1e-12)


@pytest.mark.parametrize(
    ("mean", "var", "words"),
    [
        (torch.tensor([0.0, math.nan]), torch.ones(2), "are not finite"),
        (torch.zeros(2), torch.tensor([1.0, math.inf]), "are not finite"),
        (torch.zeros(2), torch.tensor([1.0, -1.0]), "a negative running_var"),
        (torch.zeros(0), torch.zeros(0), "no channels"),
        (torch.zeros(2), torch.ones(3), r"\[2\] float32 and a running_var \[3\] float32"),
        (torch.zeros(2, 2), torch.ones(2, 2), "one number per channel"),
        (torch.zeros(2), torch.ones(2).int(), "int32"),
        (torch.zeros(2), torch.ones(2).to_sparse(), "one number per channel"),
    ],
)
def test_statistics_that_no_layer_has_are_refused_with_its_name(
    mean: Tensor, var: Tensor, words: str
):
    with pytest.raises(CheckpointError, match=words) as caught:
        batchnorm_layers(entry("stem\x1b[31m.bn", mean, var), ORIGIN)
    assert str(caught.value).startswith("teacher.pt: ")
    assert "stem" in str(caught.value) and "\x1b" not in str(caught.value)


def test_weights_without_batchnorm_are_refused():
    with pytest.raises(CheckpointError, match=r"teacher\.pt: holds no BatchNorm layer"):
        batchnorm_layers(nn.Linear(2, 2).state_dict(), ORIGIN)
