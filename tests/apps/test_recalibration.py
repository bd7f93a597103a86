"""BatchNorm statistics measured anew, against torch's own moments of the same images."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from scdd.distilled import DistilledDataset
from scdd_apps.prune.recalibration import recalibrate


def test_statistics_become_the_average_over_the_stored_views(small_file: Path):
    data = DistilledDataset.open(small_file)
    norm: Any = nn.BatchNorm2d(3, momentum=0.3).eval()
    nn.init.constant_(norm.running_mean, 7)
    norm.num_batches_tracked.fill_(5)  # As after a training, which is to be forgotten.
    weight = norm.weight.clone()
    recalibrate(norm, data, batch=12, seed=0)
    views = [next(data.epoch(v, 12, torch.Generator().manual_seed(0))).images for v in range(3)]
    mean = torch.stack([view.mean(dim=(0, 2, 3)) for view in views]).mean(dim=0)
    var = torch.stack([view.var(dim=(0, 2, 3)) for view in views]).mean(dim=0)
    assert torch.allclose(norm.running_mean, mean, atol=1e-5)
    assert torch.allclose(norm.running_var, var, atol=1e-5)
    assert norm.momentum == 0.3 and not norm.training and torch.equal(norm.weight, weight)
