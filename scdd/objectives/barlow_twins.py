"""Barlow Twins (arXiv:2103.03230): the cross-correlation of two views becomes the identity."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.objectives import BarlowTwinsConfig
from scdd.distributed import rank_and_size, total_with_gradient
from scdd.objectives.base import Batch, Loss, Objective
from scdd.objectives.heads import mlp
from scdd.synced_batchnorm import synced


class BarlowTwins(Objective):
    """Views agree in every output (diagonal 1), and no two outputs tell the same (0 elsewhere)."""

    def __init__(self, backbone: nn.Module, cfg: BarlowTwinsConfig) -> None:
        super().__init__()
        self.cfg = cfg
        features = int(backbone.feature_dim)  # type: ignore[arg-type]
        self.backbone = synced(backbone)
        self.projector = synced(mlp(features, cfg.hidden, cfg.hidden, cfg.dim))
        self.standardise = synced(nn.BatchNorm1d(cfg.dim, affine=False))

    def forward(self, batch: Batch) -> Loss:
        """Return the loss of the batch of all processes (Eq. 1), on each of them."""
        # One forward pass a view: each has batch statistics of its own.
        out1, out2 = (self.projector(self.backbone(view)) for view in batch.views)
        with torch.autocast(out1.device.type, enabled=False):
            out1, out2 = out1.float(), out2.float()
            correlation = self._correlation(out1, out2)
            diagonal = correlation.diagonal()
            invariance = (1 - diagonal).square().sum()
            redundancy = correlation.square().sum() - diagonal.square().sum()
            loss = self.cfg.scale * (invariance + self.cfg.off_diagonal * redundancy)
        return Loss(loss, F.normalize(out1.detach(), dim=1))

    def _correlation(self, out1: Tensor, out2: Tensor) -> Tensor:
        """[dim, dim] over the batch of all processes (Eq. 2)."""
        count = len(out1) * rank_and_size()[1]
        return total_with_gradient(self.standardise(out1).T @ self.standardise(out2)) / count
