"""MoCo v3 for ResNets (arXiv:2104.02057): contrast within the batch against momentum keys."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.objectives import MocoV3Config
from scdd.distributed import gather, own_rows
from scdd.objectives.base import Batch, Loss, Objective
from scdd.objectives.ema import follow
from scdd.objectives.heads import mlp
from scdd.synced_batchnorm import synced
from scdd.training import cosine


class MocoV3(Objective):
    """InfoNCE between each view's prediction and the other view's keys, those of the whole batch.

    The paper also starts residual branches at zero, which `squeeze.zero_init_residual` does.
    """

    def __init__(self, backbone: nn.Module, cfg: MocoV3Config) -> None:
        super().__init__()
        self.cfg = cfg
        projector = mlp(int(backbone.feature_dim), cfg.hidden, cfg.dim)  # type: ignore[arg-type]
        projector.append(nn.BatchNorm1d(cfg.dim, affine=False))
        self.backbone, self.projector = synced(backbone), synced(projector)
        self.predictor = synced(mlp(cfg.dim, cfg.hidden, cfg.dim))
        encoder = nn.Sequential(self.backbone, self.projector)
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.on_step_begin(0, 1)

    def on_step_begin(self, epoch: float, epochs: int) -> None:
        self._momentum = 1 - (1 - self.cfg.momentum) * cosine(epoch / epochs)

    def forward(self, batch: Batch) -> Loss:
        """Return the loss, the sum of both directions, and move the key encoder on."""
        view1, view2 = batch.views
        # One forward pass a view: each has batch statistics of its own.
        query1, query2 = self._query(view1), self._query(view2)
        follow(self.key_encoder, [self.backbone, self.projector], self._momentum)
        loss = self._contrast(query1, self._keys(view2)) + self._contrast(query2, self._keys(view1))
        return Loss(loss, query1.detach())

    def _query(self, view: Tensor) -> Tensor:
        return F.normalize(self.predictor(self.projector(self.backbone(view))).float(), dim=1)

    @torch.no_grad()
    def _keys(self, view: Tensor) -> Tensor:
        """Keys of all processes, [B of all, dim] in the order of their ranks."""
        return gather(F.normalize(self.key_encoder(view).float(), dim=1))

    def _contrast(self, query: Tensor, keys: Tensor) -> Tensor:
        """Algorithm 1's `ctr`; the factor makes the gradient independent of the temperature."""
        positive = torch.arange(len(keys), device=keys.device)[own_rows(len(query))]
        with torch.autocast(query.device.type, enabled=False):
            logits = query @ keys.T / self.cfg.temperature
            return 2 * self.cfg.temperature * F.cross_entropy(logits, positive)
