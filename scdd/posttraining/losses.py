"""What a student learns: the teacher's logits on the very view that it sees, or class labels."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from scdd.config.posttrain import PosttrainConfig
from scdd.distilled import Batch

Labels = Literal["soft", "hard"]


def student_loss(cfg: PosttrainConfig, labels: Labels, logits: Tensor, batch: Batch) -> Tensor:
    """Loss [] of the student's logits [B, C], in float32 whatever theirs are."""
    return soft_loss(cfg, logits, batch) if labels == "soft" else hard_loss(logits, batch)


def soft_loss(cfg: PosttrainConfig, logits: Tensor, batch: Batch) -> Tensor:
    """Loss [] of the student's logits [B, C] against the stored ones, mean over the batch.

    The KL divergence from the softened teacher to the softened student (SC-DD, Eq. 11) or the mean
    squared difference of the logits; with `hard_weight` the cross-entropy is added, so weighted
    (EDC, arXiv:2404.13733).
    """
    assert batch.logits is not None
    if cfg.loss == "mse":
        loss = F.mse_loss(logits.float(), batch.logits.float())
    else:
        student = F.log_softmax(logits.float() / cfg.temperature, dim=1)
        teacher = F.log_softmax(batch.logits.float() / cfg.temperature, dim=1)
        loss = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        if cfg.scale_loss:
            loss = loss * cfg.temperature**2
    return loss + cfg.hard_weight * hard_loss(logits, batch) if cfg.hard_weight else loss


def hard_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy [] with the class labels, shared with the partner's where images are mixed."""
    own = F.cross_entropy(logits.float(), batch.labels, reduction="none")
    other = F.cross_entropy(logits.float(), batch.partner_labels, reduction="none")
    return (batch.label_weight * own + (1 - batch.label_weight) * other).mean()
