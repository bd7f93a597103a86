"""How channels are ranked: by their BatchNorm scales, or by the size of their filters."""

import torch
from torch import Tensor

from scdd_apps.prune.channels import Coupled, Importance
from scdd_apps.prune.variants import Criterion


def scale_size(layer: Coupled) -> Tensor:
    """|BatchNorm scale| per position, the mean over all that is coupled.

    The order is over all layers, unscaled: network slimming (arXiv:1708.06519).
    """
    scales = torch.stack([norm.weight.detach().abs().double().cpu() for norm in layer.norms])
    return _per_position(layer, scales.mean(dim=0))


def filter_rank(layer: Coupled) -> Tensor:
    """Rank in its own layer, in [0, 1), by the L2 norm of the filters; the mean of those coupled.

    Norms of layers with different numbers of inputs say nothing about each other, so every layer
    loses the same share (as with the L1 norm in arXiv:1608.08710).
    """
    norms = torch.stack(
        [each.weight.detach().double().cpu().flatten(1).norm(dim=1) for each in layer.layers]
    )
    sizes = _per_position(layer, norms.mean(dim=0))
    return sizes.argsort(stable=True).argsort().double() / len(sizes)


def _per_position(layer: Coupled, scores: Tensor) -> Tensor:
    return scores.view(layer.ties, layer.positions).mean(dim=0)


IMPORTANCE: dict[Criterion, Importance] = {"slimming": scale_size, "magnitude": filter_rank}
