"""L1 on BatchNorm scales, as strong as the training is long: the pull budget.

SGD with momentum m and rates lr_t moves a scale by at most P = lambda * sum(lr_t) / (1 - m) through
L1 alone. A fixed lambda does nothing in a short training, so P is the setting and lambda follows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from scdd.config.posttrain import PosttrainConfig
from scdd.posttraining import learning_rate
from scdd_apps.prune.channels import Coupled
from scdd_apps.prune.criteria import scale_size

NEAR_ZERO = 0.01
"""|scale| below which a channel counts as switched off."""
BOUNDS = (NEAR_ZERO, 0.03, 0.1, 0.3, 1.0)
"""Where the bars of the histogram of |scale| meet."""


def l1_strength(pull: float, cfg: PosttrainConfig, steps_per_epoch: int) -> float:
    """The lambda with which L1 can move a scale by `pull` over the training `cfg`."""
    steps = range(cfg.epochs * steps_per_epoch)
    rates = sum(learning_rate(cfg, step, steps_per_epoch) for step in steps)
    return pull * (1 - cfg.momentum) / rates


def l1_pull(scales: Sequence[Tensor], strength: float) -> Callable[[], None]:
    """Return what adds the gradient of strength * sum |scale| to each scale's gradient."""

    def add() -> None:
        for scale in scales:
            assert scale.grad is not None
            scale.grad.add_(scale.detach().sign(), alpha=strength)

    return add


def scales_of(layers: Sequence[Coupled]) -> list[nn.Parameter]:
    """The BatchNorm scales of all layers."""
    return [norm.weight for layer in layers for norm in layer.norms]


def share_near_zero(layers: Sequence[Coupled]) -> float:
    """Share of the channels whose |scale| is below 0.01."""
    return (_scales(layers) < NEAR_ZERO).double().mean().item()


def scale_histogram(layers: Sequence[Coupled]) -> list[int]:
    """Count channels by |scale|: below the first of BOUNDS, from there to the next, ..., above."""
    bins = torch.bucketize(_scales(layers), torch.tensor(BOUNDS).double(), right=True)
    return bins.bincount(minlength=len(BOUNDS) + 1).tolist()


def _scales(layers: Sequence[Coupled]) -> Tensor:
    return torch.cat([scale_size(layer).repeat(layer.ties) for layer in layers])
