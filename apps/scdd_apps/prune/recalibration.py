"""BatchNorm statistics measured anew after pruning.

A channel with scale 0 still sends relu(shift) to the next layer, whose statistics count on it.
"""

import torch
from torch import nn

from scdd.distilled import DistilledDataset
from scdd.seeding import generator

MOST_EPOCHS = 10


@torch.no_grad()
def recalibrate(model: nn.Module, data: DistilledDataset, batch: int, seed: int) -> None:
    """Set running statistics to the plain average over a few passes of the file's own views."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = model.training
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    for epoch in range(min(max(data.num_views, 1), MOST_EPOCHS)):
        for part in data.epoch(
            epoch, batch, generator(seed, "apps.recalibrate", epoch), soft_labels=False
        ):
            model(part.images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)
