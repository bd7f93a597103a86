"""SwAV (arXiv:2006.09882): predict the cluster assignment of one view from the others."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.objectives import SwavConfig
from scdd.distributed import gather, own_rows
from scdd.objectives.base import Batch, Loss, Objective
from scdd.objectives.multicrop import GLOBAL_VIEWS, crop_features, swapped_prediction_loss
from scdd.synced_batchnorm import synced


class Swav(Objective):
    """Cross-entropy between the codes of the global views and the predictions of other views."""

    queue: Tensor
    """[2, queue, dim]: embeddings of each global view, the newest first; zeros until it is full."""

    def __init__(self, backbone: nn.Module, cfg: SwavConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.backbone = synced(backbone)
        features = int(backbone.feature_dim)  # type: ignore[arg-type]
        self.head = synced(
            nn.Sequential(
                nn.Linear(features, cfg.hidden),
                nn.BatchNorm1d(cfg.hidden),
                nn.ReLU(inplace=True),
                nn.Linear(cfg.hidden, cfg.dim),
            )
        )
        self.prototypes = nn.Linear(cfg.dim, cfg.prototypes, bias=False)
        self._normalise_prototypes()
        self.register_buffer("queue", torch.zeros(GLOBAL_VIEWS, cfg.queue, cfg.dim))
        self._full = False
        self.on_step_begin(0, 1)

    def on_step_begin(self, epoch: float, epochs: int) -> None:
        self._frozen = epoch < self.cfg.freeze_epochs
        wanted = self.cfg.queue > 0 and epoch >= self.cfg.queue_from_epoch
        # Asking the queue waits for the device, so it is asked last, and no more once it is full.
        self._full = self._full or (wanted and bool(self.queue.any(dim=2).all()))
        self._uses_queue = wanted and self._full

    def forward(self, batch: Batch) -> Loss:
        """Return the loss (Eq. 1, 2 and 6) and move the queue on."""
        out = self.head(crop_features(self.backbone, batch.views))
        with torch.autocast(out.device.type, enabled=False):
            z = F.normalize(out.float(), dim=1).unflatten(0, (len(batch.views), -1))
            codes = self._codes(z[:GLOBAL_VIEWS].detach())
            loss = swapped_prediction_loss(codes, self.prototypes(z) / self.cfg.temperature)
        return Loss(loss, z[0].detach())

    def on_backward_end(self) -> None:
        if self._frozen:
            # Not zeros, with which weight decay and momentum would still move them.
            self.prototypes.weight.grad = None

    def on_step_end(self) -> None:
        if not self._frozen:
            self._normalise_prototypes()

    @torch.no_grad()
    def _codes(self, z: Tensor) -> Tensor:
        """Codes [2, B, K] of embeddings [2, B, dim], assigned with those of all processes."""
        own = own_rows(z.shape[1])
        z = gather(z.transpose(0, 1).contiguous()).transpose(0, 1)
        queued = torch.cat([z, self.queue], dim=1)
        # Queued embeddings are scored anew: the prototypes have moved since.
        scores = self.prototypes(queued if self._uses_queue else z)
        self.queue = queued[:, : self.cfg.queue].clone()
        return torch.stack(
            [sinkhorn(view, self.cfg.epsilon, self.cfg.sinkhorn_iterations)[own] for view in scores]
        )

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        weight = self.prototypes.weight
        weight.copy_(F.normalize(weight, dim=1))


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes [B, K] of images with `scores` [B, K]: each row a distribution over the prototypes.

    Alternately gives every prototype the same share of the images and every image a sum of 1
    (Sinkhorn-Knopp, Eq. 3 to 5). On logarithms, so no score overflows, nor is a prototype lost.
    """
    logs = scores / epsilon
    for _ in range(iterations):
        logs = logs.log_softmax(dim=0).log_softmax(dim=1)
    return logs.exp()
