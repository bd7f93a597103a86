"""The k-center coreset (Sener and Savarese, arXiv:1708.00489, Algorithm 1)."""

import torch
from torch import Tensor


def k_center(features: Tensor, count: int) -> Tensor:
    """Choose by turns what lies farthest from all that is chosen; first, what is nearest the mean.

    The paper's first centres are images with labels; here there are none before.

    Args:
        features: [N, D], whose Euclidean distances count.
        count: at most N; nothing is chosen twice.

    Returns:
        int64 [count], on the CPU; of equals the first is chosen.
    """
    points = features.double().cpu()
    chosen = torch.empty(count, dtype=torch.int64)
    nearest = torch.full((len(points),), torch.inf, dtype=points.dtype)
    following = (points - points.mean(dim=0)).square().sum(dim=1).argmin()
    for rank in range(count):
        chosen[rank] = following
        nearest = nearest.minimum((points - points[following]).square().sum(dim=1))
        nearest[chosen[: rank + 1]] = -1  # Nothing is nearer, not even another of the same place.
        following = nearest.argmax()
    return chosen
