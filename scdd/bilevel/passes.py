"""How the networks of the pool are run: as written, or compiled. Neither changes the method.

All of them have one architecture, so that one graph serves them all, those that are made later too.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scdd.bilevel.regressor import new_regressor, trunk_of
from scdd.compiling import compiled_or_plain, is_worth_compiling
from scdd.config.condense_pairs import CondensePairsConfig
from scdd.training import evaluating


class Passes(NamedTuple):
    """The two ways in which a network is run."""

    inner_loss: Callable[[nn.Sequential, Tensor, Tensor], Tensor]
    """Network in train mode, images [n, 3, S, S] and targets [n, d] to their error []."""
    features: Callable[[nn.Module, Tensor], Tensor]
    """Trunk in eval mode and images [n, 3, S, S] to features [n, p]."""


def inner_loss(net: nn.Sequential, images: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error [] over all entries of `targets`."""
    return F.mse_loss(net(images), targets)


def features(trunk: nn.Module, images: Tensor) -> Tensor:
    """Features [n, p]."""
    return trunk(images)


PLAIN = Passes(inner_loss, features)


def passes_of(
    cfg: CondensePairsConfig,
    pairs: int,
    support: int,
    size: int,
    target_dim: int,
    device: torch.device,
) -> Passes:
    """Compile where there is work enough, or where the configuration says so.

    Args:
        cfg: the settings.
        pairs: n, images of a step of the inner loop, all views.
        support: images that a regression is fitted on.
        size: S.
        target_dim: d.
        device: where to compute.

    Raises:
        RunError: if it fails and the configuration insists on it.
    """
    net = new_regressor(cfg.pool.arch, size, target_dim).to(device)
    # A pass back costs twice the one there; the real images only pass there.
    work = _flops(net, size, device) * (3 * pairs + 3 * support + cfg.batch) * cfg.steps
    if not is_worth_compiling(cfg.compile, work, device):
        return PLAIN

    def images(count: int) -> Tensor:
        return torch.zeros(count, 3, size, size, device=device)

    def learn(fast: Callable[[nn.Sequential, Tensor, Tensor], Tensor]) -> None:
        parts = -(-pairs // cfg.pool.batch)
        for count in {-(-pairs // parts), pairs // parts}:
            fast(
                net.train().requires_grad_(True),
                images(count),
                torch.zeros(count, target_dim, device=device),
            ).backward()

    def judge(fast: Callable[[nn.Module, Tensor], Tensor]) -> None:
        trunk = trunk_of(net.eval().requires_grad_(False))
        fast(trunk, images(support).requires_grad_()).sum().backward()
        with torch.no_grad():
            fast(trunk, images(cfg.batch))

    insists = cfg.compile == "on"
    learning = compiled_or_plain(inner_loss, learn, "condense_pairs", insists)
    judging = compiled_or_plain(features, judge, "condense_pairs", insists)
    return Passes(learning, judging)


def _flops(net: nn.Module, size: int, device: torch.device) -> float:
    """Of the forward pass of an image."""
    counter = FlopCounterMode(display=False)
    with counter, evaluating(net), torch.no_grad():
        net(torch.zeros(1, 3, size, size, device=device))
    return float(counter.get_total_flops())
