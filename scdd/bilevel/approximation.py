"""Approximation networks (Boost, arXiv:2507.21455): targets of turned views from those as they are.

Fitted after the bilevel phase, on coefficients that no longer change.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scdd.config.condense_pairs import ApproximationConfig
from scdd.distilled.factored import Approximation
from scdd.errors import RunError
from scdd.training import cosine, set_lr


class Fitted(NamedTuple):
    """The networks of all turned views, and how good they are."""

    networks: Approximation
    explained: tuple[float, ...]
    """R^2 of the shift of each view: 1 is exact, 0 no better than its mean."""


def fit_approximation(
    cfg: ApproximationConfig, own: Tensor, turned: Tensor, draw: torch.Generator
) -> Fitted:
    """Fit a network for each turned view to how far its coefficients are off.

    Linear(V, h), ReLU, Linear(h, V) on the full batch, by Adam and the mean squared error of the
    shift. Inputs and outputs are scaled to a root mean square of 1 for that; the scales end up in
    the weights. The last layers start at zero, so that at first nothing is shifted.

    Args:
        cfg: the settings.
        own: target coefficients [m, V] of the images as they are.
        turned: [A, m, V] of the turned views.
        draw: on the CPU, for the first layers.

    Raises:
        RunError: if their weights stop being finite.
    """
    shifts = turned.detach() - own.detach()
    views, _, width = shifts.shape
    inputs, before = _scaled(own.detach())
    outputs, after = _scaled(shifts)
    bound = width**-0.5  # As nn.Linear starts.
    first = [
        ((2 * torch.rand(shape, generator=draw) - 1) * bound).to(own)
        for shape in ((views, cfg.hidden, width), (views, cfg.hidden))
    ]
    last = [own.new_zeros(views, width, cfg.hidden), own.new_zeros(views, width)]
    weights = [tensor.requires_grad_() for tensor in (*first, *last)]
    optimizer = torch.optim.Adam(weights, lr=cfg.lr)
    for step in range(cfg.steps):
        set_lr(optimizer, cfg.lr * cosine(step / cfg.steps))
        loss = F.mse_loss(_shifts(Approximation(*weights), inputs), outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    w0, b0, w1, b1 = (tensor.detach() for tensor in weights)
    networks = Approximation(w0 / before, b0, w1 * after, b1 * after)
    if not all(bool(part.isfinite().all()) for part in networks):
        raise RunError(
            "condense_pairs: the approximation networks hold values that are no numbers; lower "
            f"condense_pairs.approximate.lr (now {cfg.lr:g}) and run the same command again"
        )
    predicted = _shifts(networks, own.detach())
    return Fitted(
        networks,
        tuple(_explained(one, other) for one, other in zip(shifts, predicted, strict=True)),
    )


def _shifts(networks: Approximation, coefficients: Tensor) -> Tensor:
    """Shifts [A, m, V] of coefficients [m, V]; all networks in one product each."""
    w0, b0, w1, b1 = networks
    hidden = F.relu(coefficients @ w0.transpose(1, 2) + b0[:, None])
    return hidden @ w1.transpose(1, 2) + b1[:, None]


def _scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values of root mean square 1, and what they were divided by; zeros stay zeros."""
    size = values.square().mean().sqrt()
    size = torch.where(size > 0, size, 1.0)
    return values / size, size


def _explained(wanted: Tensor, predicted: Tensor) -> float:
    """Share of the variance of `wanted` [m, V] about its mean, over all axes, that is predicted."""
    wanted, predicted = wanted.double(), predicted.double()
    left = (wanted - predicted).square().sum()
    whole = (wanted - wanted.mean(dim=0)).square().sum()
    if whole == 0:
        return float(left == 0)
    return float(1 - left / whole)
