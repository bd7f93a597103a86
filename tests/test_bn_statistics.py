"""BatchNorm matching against torch's own BatchNorm, numpy's statistics and finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.bn_statistics import MatchedBatchNorm2d, with_matched_statistics
from scdd.models import create_model


def norm_layer(channels: int, affine: bool = True, eps: float = 1e-5) -> nn.BatchNorm2d:
    """A BatchNorm in eval mode with statistics and weights that are not the initial ones."""
    draw = torch.Generator().manual_seed(channels)
    norm = nn.BatchNorm2d(channels, affine=affine, eps=eps).eval()
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


def matching_loss(x: np.ndarray, norm: nn.BatchNorm2d) -> float:
    """The loss of one layer with weight 1, in float64, one channel at a time."""
    assert norm.running_mean is not None and norm.running_var is not None
    means, variances = [], []
    for channel in range(x.shape[1]):
        values = x[:, channel].astype(np.float64).ravel()
        mean = values.sum() / values.size
        means.append(mean - float(norm.running_mean[channel]))
        variances.append(
            ((values - mean) ** 2).sum() / values.size - float(norm.running_var[channel])
        )
    return float(np.sqrt(np.square(means).sum()) + np.sqrt(np.square(variances).sum()))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_the_output_is_that_of_batch_norm_in_eval_mode(affine: bool, eps: float):
    norm, x = norm_layer(5, affine, eps), batch(4, 5, 3, 3)
    truth = F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=eps
    )
    torch.testing.assert_close(MatchedBatchNorm2d(norm, 1.0)(x), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 5, 3, 3), (1, 5, 7, 2), (6, 5, 1, 1)])
def test_the_loss_is_the_sum_of_two_norms_with_biased_variance(shape: tuple[int, ...]):
    norm, x = norm_layer(5), batch(*shape)
    matched = MatchedBatchNorm2d(norm, 3.0)
    matched(x)
    assert matched.matching_loss.item() == pytest.approx(
        3 * matching_loss(x.numpy(), norm), rel=1e-5
    )


def test_the_loss_is_zero_where_the_batch_has_the_running_statistics_and_its_gradient_finite():
    x = batch(6, 4, 5, 5).requires_grad_(True)
    norm = norm_layer(4)
    norm.running_var, norm.running_mean = torch.var_mean(x.detach(), dim=(0, 2, 3), unbiased=False)
    matched = MatchedBatchNorm2d(norm, 10.0)
    matched(x)
    assert matched.matching_loss.item() < 1e-5
    matched.matching_loss.backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_the_gradient_agrees_with_finite_differences():
    norm = norm_layer(3)
    matched = MatchedBatchNorm2d(norm, 1.0)
    x = batch(4, 3, 4, 4).requires_grad_(True)
    matched(x)
    matched.matching_loss.backward()
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
    matched = MatchedBatchNorm2d(norm, 1.0)
    out = matched(x.bfloat16())
    assert out.dtype == torch.bfloat16 and matched.matching_loss.dtype == torch.float32
    truth = matching_loss(x.bfloat16().float().numpy(), norm)
    assert matched.matching_loss.item() == pytest.approx(truth, rel=1e-5)


def hooked(net: nn.Module, x: Tensor, first: float) -> tuple[Tensor, float]:
    """Logits and loss by forward hooks on the inputs of an untouched network in float64."""
    net = net.double().eval()
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
    losses = [matching_loss(inputs[k].numpy(), norm) for k, norm in enumerate(norms)]
    return logits, first * losses[0] + sum(losses[1:])


@pytest.mark.parametrize(
    "arch", ["resnet8", "resnet18", "mobilenet_v3_large", "shufflenet_v2_x0_5"]
)
@pytest.mark.parametrize("first", [10.0, 0.0])
def test_a_whole_network_agrees_with_hooks_on_its_layers(arch: str, first: float):
    torch.manual_seed(0)
    net = create_model(arch, 4, 16)
    x = batch(3, 3, 16, 16)
    logits, loss = with_matched_statistics(net, first)(x)
    truth_logits, truth_loss = hooked(net, x, first)
    torch.testing.assert_close(logits.double(), truth_logits, rtol=1e-3, atol=1e-4)
    assert loss.item() == pytest.approx(truth_loss, rel=1e-4)


def test_the_teacher_itself_is_not_touched():
    torch.manual_seed(0)
    net = create_model("resnet8", 4, 8).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    names = [name for name, _ in net.named_modules()]
    matched = with_matched_statistics(net, 10)
    matched.train()
    _, loss = matched(batch(4, 3, 8, 8).requires_grad_(True))
    loss.backward()
    assert net.training and [name for name, _ in net.named_modules()] == names
    assert not any(isinstance(m, MatchedBatchNorm2d) for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(p.requires_grad for p in matched.parameters())


@pytest.mark.parametrize("arch", ["vit_tiny", "squeezenet1_0"])
def test_a_network_without_batch_norm_is_refused(arch: str):
    with pytest.raises(ValueError, match="has no BatchNorm2d layer, so its statistics cannot be"):
        with_matched_statistics(create_model(arch, 4, 32), 10)


def test_a_batch_norm_without_running_statistics_does_not_count():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="choose a teacher with BatchNorm"):
        with_matched_statistics(net, 10)
