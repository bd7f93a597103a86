"""What a step of recovery is made of: random views of groups of batches, and the loss of each."""

from scdd.recovery.loss import RecoveryLoss, Terms
from scdd.recovery.views import View, draw_views, render

__all__ = ["RecoveryLoss", "Terms", "View", "draw_views", "render"]
