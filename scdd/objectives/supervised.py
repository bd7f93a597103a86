"""Training with labels (the squeeze stage of SRe2L, arXiv:2306.13092), and what it forgets."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdd.config.objectives import SupervisedConfig
from scdd.distributed import gather
from scdd.objectives.base import Batch, Loss, Objective
from scdd.synced_batchnorm import synced


class Supervised(Objective):
    """Cross-entropy of a linear classifier on the backbone.

    It counts forgetting events (section 3 of arXiv:1812.05159): presentations at which an image is
    classified wrong after it was classified right at the one before. The predictions are those of
    the training step itself: of the augmented view, in train mode, before the weights move.
    """

    forgotten: Tensor
    learnt: Tensor
    correct: Tensor
    """bool [N]: whether the last prediction was."""

    def __init__(
        self, backbone: nn.Module, cfg: SupervisedConfig, num_classes: int, num_images: int
    ) -> None:
        super().__init__()
        self.cfg = cfg
        features = int(backbone.feature_dim)  # type: ignore[arg-type]
        self.backbone, self.head = synced(backbone), nn.Linear(features, num_classes)
        self.register_buffer("forgotten", torch.zeros(num_images, dtype=torch.int32))
        self.register_buffer("learnt", torch.zeros(num_images, dtype=torch.bool))
        self.register_buffer("correct", torch.zeros(num_images, dtype=torch.bool))

    @property
    def classifier(self) -> nn.Linear:
        return self.head

    @property
    def forgetting(self) -> dict[str, Tensor]:
        return {"forgetting": self.forgotten, "learnt": self.learnt}

    def forward(self, batch: Batch) -> Loss:
        """Return the loss and take note of what was predicted."""
        (view,) = batch.views
        features = self.backbone(view)
        logits = self.head(features).float()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.cfg.label_smoothing)
        self._remember(gather(batch.rows), gather(logits.argmax(dim=1) == batch.labels))
        return Loss(loss, F.normalize(features.detach().float(), dim=1))

    @torch.no_grad()
    def _remember(self, rows: Tensor, correct: Tensor) -> None:
        self.forgotten[rows] += (self.correct[rows] & ~correct).int()
        self.learnt[rows] |= correct
        self.correct[rows] = correct
