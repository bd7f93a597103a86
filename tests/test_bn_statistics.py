"""BatchNorm matching against torch's own BatchNorm, numpy's statistics and finite differences."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.bn_statistics import MatchedBatchNorm, with_matched_statistics
from scdd.distilled.labelling import Labellers
from scdd.errors import ConfigError
from scdd.models import create_model

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def norm_layer(
    channels: int, affine: bool = True, eps: float = 1e-5, kind: type[Norm] = nn.BatchNorm2d
) -> Norm:
    """A BatchNorm in eval mode with statistics and weights that are not the initial ones."""
    draw = torch.Generator().manual_seed(channels)
    norm = kind(channels, affine=affine, eps=eps).eval()
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_(generator=draw)
    norm.running_var.uniform_(0.1, 3, generator=draw)
    if affine:
        with torch.no_grad():
            norm.weight.normal_(generator=draw)
            norm.bias.normal_(generator=draw)
    return norm


def batch(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=draw) + 0.7


def loss_of(matched: MatchedBatchNorm) -> Tensor:
    """The loss of a layer with weight 1."""
    assert matched.distances is not None
    return matched.distances.sum()


def matching_loss(x: np.ndarray, norm: Norm) -> float:
    """The loss of one layer with weight 1, in float64, one channel at a time."""
    return sum(distances(x, norm))


def distances(x: np.ndarray, norm: Norm) -> tuple[float, float]:
    """How far means and variances are from the running ones."""
    assert norm.running_mean is not None and norm.running_var is not None
    means, variances = [], []
    for channel in range(x.shape[1]):
        values = x[:, channel].astype(np.float64).ravel()
        mean = values.sum() / values.size
        means.append(mean - float(norm.running_mean[channel]))
        variances.append(
            ((values - mean) ** 2).sum() / values.size - float(norm.running_var[channel])
        )
    return float(np.sqrt(np.square(means).sum())), float(np.sqrt(np.square(variances).sum()))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_the_output_is_that_of_batch_norm_in_eval_mode(affine: bool, eps: float):
    norm, x = norm_layer(5, affine, eps), batch(4, 5, 3, 3)
    truth = F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=eps
    )
    torch.testing.assert_close(MatchedBatchNorm(norm)(x), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 5, 3, 3), (1, 5, 7, 2), (6, 5, 1, 1)])
def test_the_loss_is_the_sum_of_two_norms_with_biased_variance(shape: tuple[int, ...]):
    norm, x = norm_layer(5), batch(*shape)
    matched = MatchedBatchNorm(norm)
    matched(x)
    assert matched.distances is not None
    assert matched.distances.flatten().tolist() == pytest.approx(
        distances(x.numpy(), norm), rel=1e-5
    )


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4), (6, 5, 4, 4)])
def test_groups_are_measured_apart_whatever_the_axes(shape: tuple[int, ...]):
    x = batch(*shape)
    norm = norm_layer(5, kind=nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)
    truth = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    matched = MatchedBatchNorm(norm)
    matched.groups = 3
    torch.testing.assert_close(matched(x), truth, rtol=1e-5, atol=1e-5)
    assert matched.distances is not None and matched.distances.shape == (2, 3)
    for group, found in zip(x.split(2), matched.distances.T.tolist(), strict=True):
        assert found == pytest.approx(distances(group.numpy(), norm), rel=1e-5)


def test_the_loss_is_zero_where_the_batch_has_the_running_statistics_and_its_gradient_finite():
    x = batch(6, 4, 5, 5).requires_grad_(True)
    norm = norm_layer(4)
    norm.running_var, norm.running_mean = torch.var_mean(x.detach(), dim=(0, 2, 3), unbiased=False)
    matched = MatchedBatchNorm(norm)
    matched(x)
    assert loss_of(matched).item() < 1e-5
    loss_of(matched).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_the_gradient_agrees_with_finite_differences():
    norm = norm_layer(3)
    matched = MatchedBatchNorm(norm)
    x = batch(4, 3, 4, 4).requires_grad_(True)
    matched(x)
    loss_of(matched).backward()
    assert x.grad is not None
    # The layer computes in float32, so the differences are taken of the float64 loss of this file.
    base, width = x.detach().numpy().astype(np.float64), 1e-6
    truth = np.zeros_like(base)
    for place in np.ndindex(base.shape):
        high, low = base.copy(), base.copy()
        high[place] += width
        low[place] -= width
        truth[place] = (matching_loss(high, norm) - matching_loss(low, norm)) / (2 * width)
    error = np.linalg.norm(x.grad.numpy() - truth) / np.linalg.norm(truth)
    assert error < 1e-5


def test_statistics_are_accumulated_in_float32_for_a_low_precision_input():
    norm, x = norm_layer(4), batch(8, 4, 6, 6) + 30  # a large mean cancels in low precision
    matched = MatchedBatchNorm(norm)
    out = matched(x.bfloat16())
    assert out.dtype == torch.bfloat16 and loss_of(matched).dtype == torch.float32
    truth = matching_loss(x.bfloat16().float().numpy(), norm)
    assert loss_of(matched).item() == pytest.approx(truth, rel=1e-5)


def hooked(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and distances [K, 2] by forward hooks on an untouched network in float64."""
    net = copy.deepcopy(net).double().eval()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    inputs: dict[int, Tensor] = {}
    handles = [
        norm.register_forward_hook(lambda m, args, out, k=k: inputs.update({k: args[0]}))
        for k, norm in enumerate(norms)
    ]
    with torch.no_grad():
        logits = net(x.double())
    for handle in handles:
        handle.remove()
    found = [distances(inputs[k].numpy(), norm) for k, norm in enumerate(norms)]
    return logits, torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(
    "arch", ["resnet8", "resnet18", "mobilenet_v3_large", "shufflenet_v2_x0_5"]
)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_whole_network_agrees_with_hooks_on_its_layers(arch: str, groups: int):
    torch.manual_seed(0)
    net = create_model(arch, 4, 16)
    x = batch(4, 3, 16, 16)
    logits, found = with_matched_statistics(net, groups)(x)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert found.shape == (norms, 2, groups)
    for number, part in enumerate(x.chunk(groups)):
        truth_logits, truth = hooked(net, part)
        rows = slice(number * len(part), (number + 1) * len(part))
        torch.testing.assert_close(logits[rows].double(), truth_logits, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[..., number].double(), truth, rtol=1e-4, atol=1e-6)


def test_the_teacher_itself_is_not_touched():
    torch.manual_seed(0)
    net = create_model("resnet8", 4, 8).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    names = [name for name, _ in net.named_modules()]
    matched = with_matched_statistics(net)
    matched.train()
    _, found = matched(batch(4, 3, 8, 8).requires_grad_(True))
    found.sum().backward()
    assert net.training and [name for name, _ in net.named_modules()] == names
    assert not any(isinstance(m, MatchedBatchNorm) for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(p.requires_grad for p in matched.parameters())


@pytest.mark.parametrize("arch", ["vit_tiny", "squeezenet1_0"])
def test_a_network_without_batch_norm_is_refused(arch: str):
    with pytest.raises(ValueError, match="has no BatchNorm layer, so its statistics cannot be"):
        with_matched_statistics(create_model(arch, 4, 32))


def test_a_batch_norm_without_running_statistics_does_not_count():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="choose a teacher with BatchNorm"):
        with_matched_statistics(net)


@pytest.mark.parametrize("arch", ["efficientnet_b0", "regnetx_002"])
def test_a_batchnorm_with_an_activation_inside_is_refused(arch: str):
    net = create_model(arch, 4, 32)  # The activation would be gone from a net with other layers.
    with pytest.raises(ConfigError, match="BatchNormAct2d do more than BatchNorm"):
        with_matched_statistics(net)
    with pytest.raises(ConfigError, match="BatchNormAct2d do more than BatchNorm"):
        Labellers([net], grouped=True)
