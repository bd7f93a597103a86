"""Kernel ridge regression on features: the outer loss of KRR-ST (arXiv:2310.06511, section 3.3).

The last layer of an online network is not trained but solved for, so that the loss has a gradient
with respect to the pairs it is fitted on, without any differentiation through training.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from scdd.errors import RunError

ATTEMPTS = 4
"""Times that a factorisation is tried, each with ten times the ridge of the one before."""


def regression_loss(
    support: Tensor, targets: Tensor, queries: Tensor, wanted: Tensor, ridge: float
) -> Tensor:
    """Mean squared error [] of what `kernel_regression` predicts for `queries`.

    The mean is over all entries of `wanted` [b, d].
    """
    predicted = kernel_regression(support, targets, queries, ridge)
    return F.mse_loss(predicted, wanted.to(predicted.dtype))


def kernel_regression(support: Tensor, targets: Tensor, queries: Tensor, ridge: float) -> Tensor:
    """Predict targets float64 [b, d] of `queries` by ridge regression with a bias on `support`.

        K_ts (K_ss + lambda I)^-1 Y_s    with lambda = ridge * trace(K_ss)

    of the linear kernel of the features with a column of ones, which is the bias; it is penalised
    as the weights are. lambda counts as a constant in the gradient. The condition of the system is
    bounded by 1 / ridge, near the limit of float32, so it is solved in float64.

    Args:
        support: features [n, p] of the pairs.
        targets: [n, d] of the pairs.
        queries: features [b, p].
        ridge: lambda as a share of the trace.

    Raises:
        RunError: if the kernel is not finite, or cannot be factorised with more ridge either.
    """
    with torch.autocast(support.device.type, enabled=False):
        support, queries = _with_ones(support), _with_ones(queries)
        kernel = (support @ support.T).double()
        across = (queries @ support.T).double()
        strength = ridge * kernel.detach().trace()
        factor = _cholesky(kernel, strength)
        return across @ torch.cholesky_solve(targets.double(), factor)


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep products of float32 matrices in float32, forward and backward, whatever was set.

    TF32 rounds to 10 bits, which is more than the ridge. Convolutions have a setting of their own.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _with_ones(features: Tensor) -> Tensor:
    features = features if features.dtype == torch.float64 else features.float()
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def _cholesky(kernel: Tensor, strength: Tensor) -> Tensor:
    identity = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    for attempt in range(ATTEMPTS):
        regularised = kernel + 10**attempt * strength * identity
        factor, info = torch.linalg.cholesky_ex(regularised)
        if bool((info == 0) & factor.isfinite().all()):
            return factor
    finite = bool(kernel.isfinite().all())
    found = "cannot be factorised" if finite else "is not finite"
    advice = "raise condense_pairs.ridge or lower" if finite else "lower"
    raise RunError(
        f"condense_pairs: the kernel matrix of the {len(kernel)} learnt images {found}; {advice} "
        "condense_pairs.lr or condense_pairs.pool.lr and run again with --redo condense_pairs"
    )
