"""Self-supervised objectives, one file each.

An objective is a module: `objective(view1, view2, generator) -> loss []`, where the views are
normalised images [B, 3, H, W]. Its `backbone` is what squeeze keeps; its state dict is all that a
resumed run needs (queue, EMA weights, pointers).
"""

from torch import nn

from scdd.config.squeeze import SqueezeConfig
from scdd.models import create_model
from scdd.objectives.moco_v2 import MocoV2


def create_objective(cfg: SqueezeConfig, image_size: int) -> nn.Module:
    """Build the objective that `cfg.objective` names around a new backbone."""
    return MocoV2(create_model(cfg.arch, 0, image_size), cfg.objective)
