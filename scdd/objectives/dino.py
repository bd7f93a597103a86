"""DINO (arXiv:2104.14294): a student matches the centred, sharpened output of its own EMA."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.objectives import DinoConfig
from scdd.distributed import rank_and_size, total
from scdd.objectives.base import Batch, Loss, Objective
from scdd.objectives.ema import follow
from scdd.objectives.multicrop import GLOBAL_VIEWS, crop_features, swapped_prediction_loss
from scdd.synced_batchnorm import synced
from scdd.training import cosine


class Dino(Objective):
    """Cross-entropy of the student on all views under the teacher on the global ones.

    `backbone` and `head` are the teacher's. It follows by parameters alone: its BatchNorm buffers
    come from its own forward passes, so they hold no local view.
    """

    centre: Tensor
    """[dim]: moving average of the teacher's logits."""

    def __init__(self, backbone: nn.Module, cfg: DinoConfig) -> None:
        super().__init__()
        self.cfg = cfg
        features = int(backbone.feature_dim)  # type: ignore[arg-type]
        self.student_backbone = synced(backbone)
        self.student_head = _Head(features, cfg)
        self.backbone = copy.deepcopy(self.student_backbone).requires_grad_(False)
        self.head = copy.deepcopy(self.student_head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(cfg.dim))
        self.on_step_begin(0, 1)

    def on_step_begin(self, epoch: float, epochs: int) -> None:
        cfg = self.cfg
        self._frozen = epoch < cfg.freeze_epochs
        self._momentum = 1 - (1 - cfg.momentum) * cosine(epoch / epochs)
        self._teacher_temperature = cfg.teacher_temperature
        if epoch < cfg.teacher_warmup_epochs:
            rise = cfg.teacher_temperature - cfg.teacher_temperature_start
            share = epoch / cfg.teacher_warmup_epochs
            self._teacher_temperature = cfg.teacher_temperature_start + share * rise

    def forward(self, batch: Batch) -> Loss:
        """Return the loss (Eq. 3) and then move the centre (Eq. 4)."""
        embedding, student = self.student_head(crop_features(self.student_backbone, batch.views))
        with torch.no_grad():
            _, teacher = self.head(crop_features(self.backbone, batch.views[:GLOBAL_VIEWS]))
            targets = ((teacher - self.centre) / self._teacher_temperature).softmax(dim=1)
        loss = swapped_prediction_loss(
            targets.unflatten(0, (GLOBAL_VIEWS, -1)),
            student.unflatten(0, (len(batch.views), -1)) / self.cfg.student_temperature,
        )
        mean = total(teacher.mean(dim=0)) / rank_and_size()[1]
        self.centre.lerp_(mean, 1 - self.cfg.centre_momentum)
        return Loss(loss, embedding[: len(batch.views[0])].detach())

    def on_backward_end(self) -> None:
        if self._frozen:
            # Not zeros, with which weight decay and momentum would still move it.
            self.student_head.last_layer.weight.grad = None

    def on_step_end(self) -> None:
        follow(self.backbone, [self.student_backbone], self._momentum)
        follow(self.head, [self.student_head], self._momentum)


class _Head(nn.Module):
    """Features [B, D] to unit vectors [B, bottleneck] and their logits [B, dim], in float32.

    The rows of the last layer are weight-normalised with a fixed gain of 1, so a logit is a cosine.
    """

    def __init__(self, features: int, cfg: DinoConfig) -> None:
        super().__init__()
        mlp = nn.Sequential()
        for width in (features, cfg.hidden):
            mlp.append(nn.Linear(width, cfg.hidden))
            if cfg.head_bn:
                mlp.append(nn.BatchNorm1d(cfg.hidden))
            mlp.append(nn.GELU())
        mlp.append(nn.Linear(cfg.hidden, cfg.bottleneck))
        for module in mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.mlp = synced(mlp)
        self.last_layer = nn.Linear(cfg.bottleneck, cfg.dim, bias=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        out = self.mlp(features)
        with torch.autocast(out.device.type, enabled=False):
            embedding = F.normalize(out.float(), dim=1)
            return embedding, F.linear(embedding, F.normalize(self.last_layer.weight, dim=1))
