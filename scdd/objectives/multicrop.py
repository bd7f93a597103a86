"""Multi-crop (section 3.2 of arXiv:2006.09882): two global views and any number of local ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

GLOBAL_VIEWS = 2
"""The first views of an image; they alone make targets."""


def crop_features(backbone: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """Features [V * B, D] of V views, each [B, 3, S, S], one view after the other.

    All views of one size go through the backbone together, so BatchNorm sees one batch per size.
    """
    features: dict[int, Tensor] = {}
    for side in dict.fromkeys(view.shape[-1] for view in views):
        places = [place for place, view in enumerate(views) if view.shape[-1] == side]
        encoded = backbone(torch.cat([views[place] for place in places]))
        features |= zip(places, encoded.chunk(len(places)), strict=True)
    return torch.cat([features[place] for place in range(len(views))])


def swapped_prediction_loss(targets: Tensor, logits: Tensor) -> Tensor:
    """Mean cross-entropy [] over the images and all pairs of a target and another view.

    Args:
        targets: [G, B, K] probabilities; target g is of view g.
        logits: [V, B, K] of all views, divided by their temperature.
    """
    predictions = logits.log_softmax(dim=2)
    pairs = [
        -(target * prediction).sum(dim=1).mean()
        for g, target in enumerate(targets)
        for v, prediction in enumerate(predictions)
        if v != g
    ]
    return torch.stack(pairs).mean()
