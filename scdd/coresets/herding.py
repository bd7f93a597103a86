"""Herding (Welling, ICML 2009), as iCaRL chooses its exemplars (arXiv:1611.07725, Algorithm 4)."""

import torch
from torch import Tensor


def herding(features: Tensor, count: int) -> Tensor:
    """Choose by turns what brings the mean of the chosen nearest to the mean of all.

    Args:
        features: [N, D], taken as they are: iCaRL brings them to length 1 before.
        count: at most N; nothing is chosen twice.

    Returns:
        int64 [count], on the CPU; of equals the first is chosen.
    """
    centred = features.double().cpu()
    centred = centred - centred.mean(dim=0)
    # With the mean of all at 0, the sum of the chosen and the next one is to be short: of
    # |sum + x|^2 only |x|^2 + 2 x . sum differs between candidates.
    lengths = centred.square().sum(dim=1)
    total = torch.zeros(centred.shape[1], dtype=centred.dtype)
    chosen = torch.empty(count, dtype=torch.int64)
    for rank in range(count):
        costs = lengths + 2 * (centred @ total)
        costs[chosen[:rank]] = torch.inf
        chosen[rank] = costs.argmin()
        total += centred[chosen[rank]]
    return chosen
